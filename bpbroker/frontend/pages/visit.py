"""What the broker knows of a request for a page beside the request itself. Plain data."""

from __future__ import annotations

from dataclasses import dataclass

from bpbroker.frontend.pages.viewer import Credential


@dataclass(frozen=True, slots=True)
class Visit:
    """One request for a page."""

    source: str
    """The client's address."""
    request_id: str
    credential: Credential | None = None
    """By what the request signs in: it brought a key that counts."""
    refusal: str = ""
    """Why the key that it brought does not count."""
    to: str = ""
    """Where it wants to go then."""
