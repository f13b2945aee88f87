"""Templates of Jinja2, each used in a process of its own.

Jinja2's sandbox bounds what a template may touch; the system bounds the time and
memory that this process may use.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shlex
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from bpbroker.errors import NotFound, UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from typing import Any

    from bpbroker.recipes.coordination import Entry

    Own = Mapping[str, dict[str, Any]]

CPU_SECS = 10
"""A template that makes a megabyte takes a tenth of a second."""
WALL_SECS = 120.0
"""Limit by the wall clock: for a busy machine, and where processor time cannot be limited."""
OUTPUT_BYTES = 16 * 1024 * 1024
MEMORY_BYTES = 256 * 1024 * 1024
"""Memory that it may use in addition to what it has at first."""


class Missing(NotFound):
    """A template names an entry, or a field, that does not exist."""


class Template:
    """A template. It can read entries and environment variables and make text, and nothing else.

    Args:
        source: its text.
        name: its name in messages.

    Raises:
        UsageError: the text is no template, or Jinja2 is not installed.
    """

    def __init__(self, source: str, name: str) -> None:
        try:
            import jinja2.sandbox  # noqa: F401 - a forked process has it already
        except ImportError:
            raise UsageError(
                f"render needs Jinja2, which {sys.executable} does not have: {sys.executable} -m pip install jinja2,"
                " or the distribution's own (python3-jinja2) where that is its Python"
            ) from None
        self._source = source
        self._name = name
        self._bounded(None)  # reading it computes what is constant in it

    def text(self, entries: Mapping[str, Entry]) -> str:
        """Return the text that the template makes of all entries, which are of one revision.

        Raises:
            Missing: it names an entry that does not exist.
            UsageError: it has an error, does something forbidden, or uses too much.
        """
        return self._bounded({name: entry.own for name, entry in entries.items()})

    def _bounded(self, entries: Own | None) -> str:
        """Read the template in a process that is ended when it uses too much; with entries, fill it, too."""
        limits = CPU_SECS, OUTPUT_BYTES, MEMORY_BYTES
        ways = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("fork" if "fork" in ways else None)
        ours, its = context.Pipe(duplex=False)
        # A process of multiprocessing keeps standard output and error, where it says what must not happen.
        given = ours, its, self._source, self._name, entries, limits
        process = context.Process(target=_work, args=given, daemon=True)
        process.start()
        its.close()
        try:
            if not ours.poll(WALL_SECS):
                raise self._too_much(f"took more than {WALL_SECS:g} s")
            kind, text = json.loads(ours.recv_bytes())
        except EOFError:
            process.join()
            raise self._too_much(
                f"took more than {CPU_SECS} s of computing, or more memory than there is"
                if (process.exitcode or 0) < 0
                else f"was ended by the system (exit code {process.exitcode})"
            ) from None
        finally:
            ours.close()
            process.kill()
            process.join()
        if kind == "missing":
            raise Missing(text)
        if kind == "wrong":
            raise UsageError(text)
        return str(text)

    def _too_much(self, why: str) -> UsageError:
        return UsageError(f"The template {self._name!r} cannot be used: it {why}")


# --- in the other process ---


def _work(
    read_end: Connection,
    pipe: Connection,
    source: str,
    name: str,
    entries: Own | None,
    limits: tuple[int, int, int],
) -> None:
    """Read and fill a template. Send the outcome: ``text``, ``missing`` or ``wrong``, and the text or message."""
    read_end.close()  # held here, it would have this process wait for ever when the one that reads was killed
    cpu_secs, output_bytes, memory_bytes = limits
    kept = _limit(cpu_secs, memory_bytes)
    answer: tuple[str, str]
    try:
        answer = "text", _made(source, name, entries, output_bytes)
    except Missing as error:
        answer = "missing", str(error)
    except UsageError as error:
        answer = "wrong", str(error)
    except MemoryError:
        needs = f"it needs more than {memory_bytes >> 20} MiB of memory"
        answer = "wrong", f"The template {name!r} cannot be used: {needs}"
    except RecursionError:
        answer = "wrong", f"The template {name!r} calls itself without an end"
    with suppress(BrokenPipeError):
        pipe.send_bytes(json.dumps(answer).encode())
    pipe.close()
    del kept


def _limit(cpu_secs: int, memory_bytes: int) -> object:
    """Limit what this process uses, as far as the system can; return an object that must be kept for that."""
    if sys.platform == "win32":
        from bpbroker import windows

        job = windows.Job(memory_bytes)
        job.take(-1)  # this process
        return job
    import resource

    def within(most: int, hard: int) -> int:
        return most if hard == resource.RLIM_INFINITY else min(most, hard)

    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    # One second more: then the system kills what the first signal did not end.
    resource.setrlimit(resource.RLIMIT_CPU, (within(cpu_secs, hard), within(cpu_secs + 1, hard)))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # not Linux: no such file, and no such limit that works
        used = int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (within(used + memory_bytes, hard), hard))
    return None


def _made(source: str, name: str, entries: Own | None, output_bytes: int) -> str:
    """Return the text that a template makes of entries; without entries, only check that it can be read.

    Raises:
        Missing, UsageError: as :meth:`Template.text`.
    """
    import jinja2.sandbox

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, loader=None
    )
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False, sort_keys=True)
    environment.filters["shell"] = lambda value: shlex.quote(value if isinstance(value, str) else json.dumps(value))
    environment.globals["env"] = lambda key, default="": os.environ.get(str(key), default)
    errors = (jinja2.TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError)
    try:
        template = environment.from_string(source)
    except jinja2.TemplateSyntaxError as error:
        raise UsageError(f"The template {name!r} is wrong in line {error.lineno}: {error.message}") from None
    except errors as error:  # of what is constant in it
        raise UsageError(f"The template {name!r} cannot be used: {error}") from None
    if entries is None:
        return ""
    pieces: list[str] = []
    size_bytes = 0
    try:
        for piece in template.generate(**_functions(name, entries)):
            size_bytes += len(piece.encode("utf-8", "replace"))
            if size_bytes > output_bytes:
                raise UsageError(f"The template {name!r} cannot be used: it makes more than {output_bytes} bytes")
            pieces.append(piece)
    except (Missing, UsageError):
        raise
    except errors as error:
        raise UsageError(f"The template {name!r} cannot be used: {error}") from None
    return "".join(pieces)


def _functions(template: str, entries: Own) -> dict[str, Any]:
    """Return the functions that a template may call."""

    def entry(name: str) -> dict[str, Any]:
        if name not in entries:
            raise Missing(f"The template {template!r} needs the entry '{name}', which does not exist")
        return entries[name]

    def under(prefix: str = "") -> dict[str, dict[str, Any]]:
        return {name: entries[name] for name in sorted(entries) if name.startswith(prefix)}

    def field(name: str, path: str) -> Any:
        value: Any = entry(name)
        for part in path.split("."):
            if not isinstance(value, Mapping) or part not in value:
                raise Missing(f"The template {template!r} needs the field '{path}' of entry '{name}'")
            value = value[part]
        return value

    return {"entry": entry, "entries": under, "field": field}
