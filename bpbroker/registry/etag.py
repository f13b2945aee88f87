"""The tag of an entry (its ETag): the only place where tags are made. Pure."""

from __future__ import annotations

import hashlib


def etag(encoded: bytes) -> str:
    """Return the strong entity tag of an encoded entry, quotes included (RFC 9110, section 8.8.3)."""
    return f'"{hashlib.sha256(encoded).hexdigest()[:32]}"'
