"""A page with one sentence: for errors, also of requests that are refused before they reach the pages. Pure."""

from __future__ import annotations

from html import escape
from http import HTTPStatus
from typing import Final

HTML: Final = "text/html;charset=utf-8"

HEADERS: Final[tuple[tuple[str, str], ...]] = (
    (
        "Content-Security-Policy",
        "; ".join(
            (
                "default-src 'none'",
                "script-src 'self'",
                "style-src 'self'",
                "img-src 'self'",
                "connect-src 'self'",
                "form-action 'self'",
                "base-uri 'none'",
                "frame-ancestors 'none'",
            )
        ),
    ),
    ("X-Content-Type-Options", "nosniff"),
    # Not no-referrer: browsers then send "Origin: null" with our own forms.
    ("Referrer-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Permissions-Policy", "camera=(), geolocation=(), microphone=()"),
)
"""What each page tells the browser: no script or style but our own files, no other site, no frame. No HSTS: it would
be for all ports of this host name."""


def page(status: int, message: str) -> bytes:
    """Return the page of an error."""
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = "Error"
    # Under a name that is not the broker's, the overview would be refused as well.
    lost = status == HTTPStatus.MISDIRECTED_REQUEST
    way_on = "" if lost else '<p><a class="button" href="/ui/">To the overview</a></p>\n'
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{status} {escape(phrase)} · bpbroker</title>\n"
        '<link rel="icon" href="/ui/static/icon.svg">\n<link rel="stylesheet" href="/ui/static/style.css">\n'
        '</head>\n<body class="alone">\n<main>\n'
        f"<h1>{escape(phrase)}</h1>\n<p>{escape(message)}</p>\n{way_on}</main>\n</body>\n</html>\n"
    ).encode("utf-8", "replace")
