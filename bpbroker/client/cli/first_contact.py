"""The decision of ``bpclient`` about a certificate that it has never seen.

Any host can answer a discovery, and must not get an access key by that. So a broker of which nothing is known but
its answer is refused before a key is sent to it. An address that a person named is trusted at first contact, as scripts
of 0.22 need it, but not silently.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from bpbroker.errors import NotTrusted

_WAYS = (
    "give --token (`bpbroker token` on the broker prints it), --fingerprint (`bpbroker certificate` shows it), "
    "or --cacert"
)


class FirstContact:
    """Decides about one certificate, see :class:`bpbroker.client.pins.KnownBrokers`.

    Args:
        tell: called with a warning.
        key: whether an access key is going to be sent.
        discovered: the name by which the broker was discovered; empty if a person named its address.
        strict: whether every first contact is refused.
        ask: asks a person yes or no; None without a person.
    """

    def __init__(
        self,
        tell: Callable[[str], None],
        *,
        key: bool,
        discovered: str,
        strict: bool,
        ask: Callable[[str], bool] | None,
    ) -> None:
        self._tell = tell
        self._key = key
        self._discovered = discovered
        self._strict = strict
        self._ask = ask

    def decide(self, address: str, fingerprint: str) -> None:
        """Decide whether the certificate may be pinned.

        Raises:
            NotTrusted: it must not be pinned; nothing was sent.
        """
        from bpbroker.discovery.jointoken import shown_fingerprint

        found = f"SHA-256 {shown_fingerprint(fingerprint)}"
        if self._strict:
            raise NotTrusted(
                f"The certificate of {address} is not known, and trust is strict; nothing was sent. It is {found}; "
                f"to trust it, {_WAYS}"
            )
        if not self._key:
            return
        if self._discovered:
            raise NotTrusted(
                f"{address} answered for '{self._discovered}', but any host could have; nothing was sent. "
                f"Its certificate is {found}. Before an access key goes there, {_WAYS}"
            )
        if self._ask is None:
            self._tell(
                f"Warning: the access key goes to {address}, whose certificate was never seen before: {found}. "
                f"To be sure, {_WAYS}"
            )
        elif not self._ask(f"The certificate of {address} was never seen before: {found}. Send the access key there?"):
            raise NotTrusted(f"The certificate of {address} was not accepted; nothing was sent")


def question_on_terminal() -> Callable[[str], bool] | None:
    """Return the function that asks the person at the terminal; None without a terminal."""
    if sys.stdin is None or sys.stderr is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(question: str) -> bool:
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    return ask
