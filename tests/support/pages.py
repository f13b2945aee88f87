"""The pages for users: their code blocks, and a shell to type them into.

A block is fenced. What stands behind its language says how it is tested::

    ```shell                   typed, command after command, on one broker for each page; the output is compared
    ```shell not-run: REASON   only read: REASON is one of those that tests/docs/test_pages.py knows
    ```sh NAME                 a script: tests/docs/test_cookbook.py has a test for NAME
    ```python FILE             written to FILE before the page's commands are typed
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
FOR_DEVELOPERS: Final = {"architecture.md", "glossary.md"}
PAGES: Final = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in FOR_DEVELOPERS),
]


class Block(NamedTuple):
    """One fenced block of a page."""

    page: Path
    language: str
    note: str
    """What stands behind the language."""
    text: str

    @property
    def not_run(self) -> str | None:
        """Why nobody types it; None if it is typed."""
        return self.note.removeprefix("not-run: ") if self.note.startswith("not-run: ") else None


class Step(NamedTuple):
    """What is typed, and the lines that the page shows below."""

    where: str
    """Letters of the machines, before the prompt; empty where there is only one."""
    command: str
    shown: list[str]


def blocks(page: Path) -> list[Block]:
    """Return all fenced blocks, in order."""
    found = re.findall(r"^```([a-z]+) ?(.*)\n((?:.*\n)*?)```$", page.read_text(), re.MULTILINE)
    return [Block(page, language, note, text) for language, note, text in found]


def script(page: Path, name: str) -> str:
    """Return the text of the script NAME."""
    (text,) = (block.text for block in blocks(page) if (block.language, block.note) == ("sh", name))
    return text


def steps(block: Block) -> Iterator[Step]:
    """Yield the commands of a shell block; a line that begins with ``>`` goes on with the command."""
    parts = re.split(r"^([a-z]*)\$ ", block.text, flags=re.MULTILINE)
    assert parts[0] == "", f"{block.page.name}: a block must begin with a prompt: {parts[0]}"
    for where, typed in zip(parts[1::2], parts[2::2], strict=True):
        first, *lines = typed.rstrip("\n").split("\n")
        more = [line.removeprefix(">").removeprefix(" ") for line in lines if line.startswith(">")]
        yield Step(where, "\n".join([first, *more]), lines[len(more) :])


def alike(printed: str, shown: str) -> bool:
    """Whether a line is what the page shows, but for what differs from run to run: addresses and times."""
    varying = re.compile(r"\d+\.\d+\.\d+\.\d+(:\d+)?|\b1[0-9]{9}\b")
    return varying.sub("#", printed) == varying.sub("#", shown)


class Shell:
    """A bash in a folder, for typing into."""

    def __init__(self, folder: Path, environ: Mapping[str, str], prefix: Sequence[str] = ()) -> None:
        self.folder = folder
        self._steps = 0
        self.process = subprocess.Popen(
            [*prefix, "bash"], cwd=folder, env=dict(environ), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def type(self, command: str) -> tuple[int, str, str]:
        """Return exit code, standard output and standard error; what runs in the background stays running."""
        self._steps += 1
        typed, out, err = (self.folder / f"{self._steps}.{kind}" for kind in ("sh", "out", "err"))
        typed.write_text(f"{command}\n")
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f". {typed} < /dev/null > {out} 2> {err}; echo $?\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline()), out.read_text(), err.read_text()

    def leave(self) -> None:
        """Close it, and wait for its end."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


def with_scripts(scripts: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which our programs are found first."""
    return {**environ, "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
