"""Kinds of arguments that are looked at before anything is measured: a run takes minutes."""

from __future__ import annotations

from argparse import ArgumentTypeError
from pathlib import Path


def folder(text: str) -> Path:
    """Return a folder that is there, absolute: each server runs in one of its own, where the name means another.

    Raises:
        ArgumentTypeError: it is not there. It is not made: the wrong disk would be measured.
    """
    path = Path(text).absolute()
    if not path.is_dir():
        raise ArgumentTypeError(f"there is no folder {path}")
    return path


def kept_file(text: str) -> Path:
    """Return a file that is there.

    Raises:
        ArgumentTypeError: it is not.
    """
    path = Path(text)
    if not path.is_file():
        raise ArgumentTypeError(f"there is no file {path}")
    return path


def new_file(text: str) -> Path:
    """Return a file that can be written in the end, as far as can be seen.

    Raises:
        ArgumentTypeError: its folder is not there, or it is a folder itself.
    """
    path = Path(text)
    folder(str(path.parent))
    if path.is_dir():
        raise ArgumentTypeError(f"{path} is a folder")
    return path
