"""The form of results on standard output. Pure: from values to bytes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence

from bpbroker.client.address import BrokerAddress
from bpbroker.errors import NotShown
from bpbroker.recipes.coordination import Entry
from bpbroker.registry.entry_values import STAMP_KEYS, TEXT_KEY

TYPE_CHECKING = False  # typing costs a one-shot call 3 ms
if TYPE_CHECKING:  # novm
    from typing import Any, Final, TypeAlias

    from bpbroker.client.doctor import Finding
    from bpbroker.client.responders import Broker

FORMATS: Final = ("json", "text", "csv", "csv-noheader", "shell", "powershell")

Row: TypeAlias = "Mapping[str, Any]"


class Output:
    """A command's result in every output form.

    Args:
        text: unchanged, with its last newline; None: one row's JSON, so that ``cols`` can choose from it.
        value: shown by ``json``.
        rows: shown by tables and shells.
        many: whether there may be another number of rows than one.
        exit_code: of the command, after printing.
    """

    def __init__(
        self, text: bytes | None, value: Any, rows: Sequence[Row], *, many: bool = False, exit_code: int = 0
    ) -> None:
        self.text = text
        self.value = value
        self.rows = rows
        self.many = many
        self.exit_code = exit_code
        self.after: Callable[[], None] | None = None
        """Called after printing."""


NOTHING: Final = Output(b"", None, [])
"""The result went somewhere else: nothing is printed, in any form."""


def render(output: Output, form: str, cols: Sequence[str] = ()) -> bytes:
    """Return the bytes to print, the newline at the end included.

    Args:
        output: the result.
        form: one of :data:`FORMATS`.
        cols: the keys of every row to show, in this order; all if empty.

    Raises:
        NotShown: the form cannot hold the result, such as a NUL in a shell's variable, or NaN in JSON.
    """
    if output is NOTHING:
        return b""
    rows = [_chosen(row, cols) for row in output.rows]
    if form == "text":
        return _line(json.dumps(rows[0])) if output.text is None else output.text
    if form == "json":
        return _line(_strict_json(_chosen_value(output.value, cols)))
    if form in ("csv", "csv-noheader"):
        return _csv(rows, cols, header=form == "csv")
    lines = _assignments(rows, output.many, _POWERSHELL if form == "powershell" else _SHELL)
    return _bytes("".join(f"{line}\n" for line in lines))


# --- the results of commands ---


def of_entry(entry: Row) -> Output:
    """Show an entry, or a ping's echo: text alone as that text, an object as JSON."""
    own = [key for key in entry if key not in STAMP_KEYS]
    plain = own == [TEXT_KEY] and isinstance(entry[TEXT_KEY], str)
    return Output(_line(entry[TEXT_KEY]) if plain else None, entry, [entry])


def of_ping(answer: Row) -> Output:
    """Show the echo; forms other than text have the client's address, too."""
    shown = of_entry(answer["data"])
    text = _line(json.dumps(answer["data"])) if shown.text is None else shown.text
    return Output(text, answer, [{"src": answer.get("src"), **answer["data"]}])


def of_caller(caller: Row) -> Output:
    """Show the rights of the access key, in lines."""
    lines = [
        ("name", caller["name"] or "-"),
        *(("allow", rule) for rule in caller["allow"]),
        ("until", caller.get("until") or "-"),
        *([("uses", f"{caller['used']} of {caller['uses']}")] if caller.get("uses") else []),
        *(("from", network) for network in caller.get("from", ())),
        ("address", caller["address"]),
    ]
    return Output(b"".join(_line(f"{what}\t{text}") for what, text in lines), caller, [caller])


def of_value(name: str, value: Any) -> Output:
    """Show one value: text unchanged, any other value as JSON."""
    return Output(_line(_cell(value) if value is not None else "null"), value, [{name: value}])


def of_tagged(tag: str, name: str, value: Any) -> Output:
    """Show an entry's tag and one value of it, with a tab between."""
    shown = _in_its_cell(_cell(value) if value is not None else "null")
    row = {"etag": tag, name: value}
    return Output(_line(f"{tag}\t{shown}"), row, [row])


def of_entries(entries: Mapping[str, Entry]) -> Output:
    """Show entries: a line each, name and value with a tab between."""
    text = b"".join(_line(f"{_in_its_cell(name)}\t{_in_its_cell(_entry_text(item))}") for name, item in entries.items())
    return Output(text, entries, [{"name": name, **item} for name, item in entries.items()], many=True)


def of_holders(holders: Sequence[Row]) -> Output:
    """Show the holders of a lock: the data of each, a line each."""
    texts = [each.get("data") for each in holders]
    lines = b"".join(_line(text if isinstance(text, str) else json.dumps(text)) for text in texts)
    return Output(lines, list(holders), holders, many=True)


def of_names(names: Sequence[str], value: Any = None) -> Output:
    """Show names, a line each; in ``json`` show ``value`` if there is one."""
    text = b"".join(map(_line, names))
    return Output(text, list(names) if value is None else value, [{"name": name} for name in names], many=True)


def of_pins(pins: Mapping[str, str]) -> Output:
    """Show the pins: a line each, address and fingerprint with a tab between."""
    rows = [{"address": address, "fingerprint": pin} for address, pin in pins.items()]
    return Output(b"".join(_line(f"{address}\t{pin}") for address, pin in pins.items()), rows, rows, many=True)


def of_broker(broker: Broker) -> Output:
    """Show a broker in the form for ``-b``: its address, with the port unless it is the default."""
    row = broker._asdict()
    return Output(_line(_target(broker)), row, [row])


def of_brokers(brokers: Sequence[Broker]) -> Output:
    """Show brokers as :func:`of_broker` does, a line each."""
    rows = [broker._asdict() for broker in brokers]
    return Output(b"".join(_line(_target(broker)) for broker in brokers), rows, rows, many=True)


def _target(broker: Broker) -> str:
    return BrokerAddress(broker.address, broker.port).brief


def of_findings(found: Sequence[Finding]) -> Output:
    """Show what the doctor found, a line each with the advice below it; exit code 1 when something failed."""
    from bpbroker.client.doctor import FAIL

    lines = []
    for finding in found:
        lines.append(f"{finding.level:<8} {finding.what}: {finding.detail}\n")
        if finding.advice:
            lines.append(f"{'':<8} -> {finding.advice}\n")
    rows = [finding._asdict() for finding in found]
    failed = any(finding.level == FAIL for finding in found)
    return Output("".join(lines).encode(), rows, rows, many=True, exit_code=int(failed))


def of_response(response: Row, text: bytes) -> Output:
    """Show a call that has no result: ``text``, or in the other forms the broker's whole response."""
    rows = [{key: value for key, value in response.items() if key != "data"}]
    return Output(text, response, rows)


def of_raw(response: Row) -> Output:
    """Show a whole response."""
    return Output(_line(json.dumps(response)), response, [response])


def of_body(body: bytes) -> Output:
    """Show an extension's response unchanged; in other forms its JSON value, or its text."""
    text = body.decode("utf-8", "replace")
    try:
        value = json.loads(body)
        json.dumps(value, allow_nan=False)  # Python reads NaN and similar as JSON, others do not
    except (ValueError, RecursionError):
        value = text
    if isinstance(value, dict):
        return Output(body, value, [value])
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return Output(body, value, value, many=True)
    return Output(body, value, [{"data": value}])


def _entry_text(entry: Row) -> str:
    text = of_entry(entry).text
    if text is None:
        return json.dumps(entry)
    try:
        return text.decode()[:-1]
    except UnicodeDecodeError:
        return text.decode(sys.getfilesystemencoding(), "surrogateescape")[:-1]


def _in_its_cell(text: str) -> str:
    """Return text for one cell of a line: as JSON if a tab or line break in it would end the cell."""
    return json.dumps(text) if any(character in "\t\n\r" for character in text) else text


def _strict_json(value: Any) -> str:
    try:
        return json.dumps(value, allow_nan=False)
    except (ValueError, RecursionError):
        raise NotShown("The answer has a number that is NaN or infinite, or is too deep, for json; use text") from None


def _line(text: str) -> bytes:
    return _bytes(f"{text}\n")


def _bytes(text: str) -> bytes:
    """Return text as bytes, in the encoding in which the words of a command line come."""
    encoding = sys.getfilesystemencoding()
    if encoding == "utf-8":
        try:
            return text.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:  # half a surrogate pair, which only JSON can write, becomes a question mark
            return text.encode("utf-8", "replace")
    from bpbroker.text import said

    return said(text, encoding)


def _chosen(row: Row, cols: Sequence[str]) -> Row:
    return {col: row[col] for col in cols if col in row} if cols else row


def _chosen_value(value: Any, cols: Sequence[str]) -> Any:
    """Choose keys of an object, of each object in a list, or of each entry in an object of entries."""
    if not cols:
        return value
    if isinstance(value, list):
        return [_chosen(item, cols) if isinstance(item, Mapping) else item for item in value]
    if not isinstance(value, Mapping):
        return value
    if value and all(isinstance(item, Entry) for item in value.values()):
        return {name: _chosen(item, cols) for name, item in value.items()}
    return _chosen(value, cols)


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


# --- tables ---


def _csv(rows: Sequence[Row], cols: Sequence[str], *, header: bool) -> bytes:
    """Return rows as CSV (RFC 4180 but for the line ends, which are what shells read)."""
    import csv
    import io

    columns = list(cols) or list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if header and columns:
        writer.writerow(columns)
    writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)
    return _bytes(text.getvalue())


# --- shells ---


class _Dialect:
    """How a shell assigns text to a variable.

    Args:
        assignment: with ``{name}`` and ``{value}``.
        quotes: the replacement of each character that would end the quoted text.
    """

    def __init__(self, assignment: str, quotes: Mapping[str, str]) -> None:
        self.assignment = assignment
        self.quotes = quotes


_SHELL: Final = _Dialect("{name}='{value}'", {"'": "'\\''"})
# PowerShell takes typographic single quotes for the plain one; each is written twice.
_POWERSHELL: Final = _Dialect("${name} = '{value}'", {quote: quote * 2 for quote in "'\u2018\u2019\u201a\u201b"})


def _assignments(rows: Sequence[Row], many: bool, dialect: _Dialect) -> list[str]:
    """Return assignments to variables named ``bp_<key>``.

    The prefix is needed because any client that may write chooses the keys: an entry must not be able to set ``PATH``.
    """
    variables: dict[str, Any] = {"bp_count": len(rows)} if many else {}
    taken = set(variables)
    for number, row in enumerate(rows, 1):
        for key, value in row.items():
            name = ("bp_" + (f"{number}_" if many else "")) + _identifier(key)
            # PowerShell takes Role and role for one variable.
            unique = name.lower() if dialect is _POWERSHELL else name
            if unique in taken:
                raise NotShown(f"Two keys would both be the variable {name}; choose one with --cols, or use json")
            taken.add(unique)
            variables[name] = value
    return [dialect.assignment.format(name=name, value=_quoted(value, dialect)) for name, value in variables.items()]


def _identifier(key: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in key).lstrip("_") or "_"


def _quoted(value: Any, dialect: _Dialect) -> str:
    text = _cell(value)
    if "\0" in text:
        raise NotShown("A value has a NUL character in it, which no shell can hold; use json")
    return "".join(dialect.quotes.get(letter, letter) for letter in text)
