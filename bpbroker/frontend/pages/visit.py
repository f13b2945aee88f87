"""What the broker knows about a request for a page, beside the request itself. Plain data."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from bpbroker.frontend.pages.viewer import Credential

VISIT: Final = "bpbroker.visit"
"""The key under which CherryPy's request has the visit."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One request for a page."""

    source: str
    """The client's address."""
    request_id: str
    session: str = ""
    """The session id in its cookie, in the right form; there may be no such session."""
    credential: Credential | None = None
    """The sign-in that the request asks for; its key counts."""
    refusal: str = ""
    """Why the key in it does not count."""
    to: str = ""
    """The path to show after the sign-in."""


def session_in(header: str, cookie: str) -> str:
    """Return the id of a session that the header ``Cookie`` names; empty if there is none.

    Python's own parser of cookies takes time that grows with the square of a header's length (CVE-2024-7592). So only
    a session id is searched for here.

    Args:
        header: the header's value.
        cookie: the name of the session's cookie.
    """
    found = re.search(rf"(?:^|;) ?{re.escape(cookie)}=([0-9a-f]{{40}})(?:;|$)", header)
    return "" if found is None else found[1]


def takes_gzip(header: str) -> bool:
    """Return whether the header ``Accept-Encoding`` names gzip with a weight that is not 0."""
    for offer in header.lower().split(","):
        coding, *options = (word.strip() for word in offer.split(";"))
        if coding == "gzip":
            return not any(re.fullmatch(r"q\s*=\s*0(?:\.0*)?", option) for option in options)
    return False
