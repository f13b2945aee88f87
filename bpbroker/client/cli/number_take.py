"""``number`` and ``service take``: numbers and entries for one receiver alone."""

from __future__ import annotations

from bpbroker.client.cli import output
from bpbroker.client.cli.words import seconds
from bpbroker.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from bpbroker.client.cli.output import Output
    from bpbroker.client.cli.session import Session


def number(
    session: Session,
    *,
    pool: str | None,
    owner: str | None,
    first: int | None,
    last: int | None,
    number: int | None,
    release: bool,
    quarantine: str | None,
    counter: str | None,
    by: int | None,
    fence: str | None,
) -> Output:
    """Print the owner's number in a pool, or the next one of a counter."""
    if (pool is None) == (counter is None):
        raise UsageError("Give --pool and --for, or --counter")
    if quarantine and not release:
        raise UsageError("--quarantine goes with --release")
    if pool is not None and not owner:
        raise UsageError('Whose number? Give --for, such as --for "$(cat /etc/machine-id)"')
    if owner and not release:
        session.doubt_name(owner)
    lock = session.fenced_by(fence)
    client, _ = session.client()
    with client, session.waiting_for(f"broker {client.address}"):
        if counter is not None:
            return output.of_value("number", client.next(counter, by or 1, owner=owner or "", lock=lock))
        if release:
            rest_secs = seconds(quarantine) if quarantine else 0
            client.release(pool or "", owner or "", quarantine_secs=rest_secs, lock=lock)
            return output.of_response(client.response, b"")
        found = client.allocate(
            pool or "", owner or "", first=1 if first is None else first, last=255 if last is None else last,
            number=number, lock=lock,
        )  # fmt: skip
        return output.of_value("number", found)


def take(session: Session, *, name: str, receiver: str, ack: bool, no_ack: bool, fence: str | None) -> Output:
    """Print an entry that is for one receiver; it is destroyed once it was written out."""
    if ack and no_ack:
        raise UsageError("--ack and --no-ack are both given; give one of them")
    session.doubt_name(receiver)
    client, _ = session.client()
    taking = client.take(name, receiver, lock=session.fenced_by(fence))
    try:
        with session.waiting_for(f"entry '{name}' on {client.address}"):
            shown = output.of_entry(taking.take())
    except BaseException:  # it is closed after an interruption, too; the acknowledgement is sent on it
        client.close()
        raise
    if no_ack:
        client.close()
        return shown

    def acknowledge() -> None:
        with client:
            taking.ack()

    shown.after = acknowledge
    return shown
