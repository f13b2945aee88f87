"""The product's ``bpbroker`` command, with a thread beside it that kills and holds actors of the running broker.

Usage: ``SABOTEUR=SOCKET python saboteur.py start …``. Each connection to the
socket brings one line, ``WORD CLASS``, and gets one line back when it is done:

* ``kill Registry``: the actor's thread ends as after a fault that nobody foresaw, without any tidying up. This
  waits for a round of the healthcheck first, so that the dead one is there for most of a period.
* ``hold Registry``: the actor works on one message until ``release``.
* ``release``: all that are held go on.
* ``count Registry``: how many of its actors there are, those out of use included.
* ``threads discovery receiver``: how many threads of that name there are.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any, Final, NoReturn

import pykka

from bpbroker.actors.base import Actor
from bpbroker.actors.inbox import Envelope
from bpbroker.cli import main

_ACTORS: Final[dict[str, list[Actor]]] = {}
"""Class name to all actors of it that were ever seen, the newest last."""
_released: Final = threading.Event()


class _Hold:
    """The message that holds an actor."""

    def __init__(self) -> None:
        self.begun = threading.Event()


class _Fault:
    """Looks like an envelope, and is not to be opened."""

    reply_to = None

    @property
    def message(self) -> NoReturn:
        raise RuntimeError("sabotage")


def _newest(name: str) -> Actor:
    for ref in pykka.ActorRegistry.get_by_class_name(name):
        actor: Any = ref._actor_weakref()
        if actor is not None and actor not in _ACTORS.setdefault(name, []):
            _ACTORS[name].append(actor)
    return _ACTORS[name][-1]


def _kill(name: str) -> None:
    health: Any = _newest("Healthcheck")
    while name != "Healthcheck" and health._next_round - time.monotonic() < 0.8 * health._every_secs:
        time.sleep(0.01)
    actor = _newest(name)
    actor.actor_inbox._queue.put(_Fault())  # past put(), which would open it
    actor.actor_stopped.wait()


def _hold(name: str) -> None:
    actor = _newest(name)
    hold = _Hold()

    def take(message: _Hold) -> None:
        message.begun.set()
        _released.wait()

    actor.handlers[_Hold] = take
    actor.actor_ref.tell(Envelope(hold))
    hold.begun.wait()


def _count(name: str) -> int:
    _newest(name)
    return sum(not actor.actor_stopped.is_set() for actor in _ACTORS[name])


def _serve(listener: socket.socket) -> None:
    while True:
        connection, _ = listener.accept()
        with connection, connection.makefile("rw") as stream:
            word, _, name = stream.readline().strip().partition(" ")
            said: object = "done"
            if word == "kill":
                _kill(name)
            elif word == "hold":
                _hold(name)
            elif word == "release":
                _released.set()
            elif word == "count":
                said = _count(name)
            elif word == "threads":
                said = sum(thread.name == name for thread in threading.enumerate())
            stream.write(f"{said}\n")


if __name__ == "__main__":
    own = socket.socket(socket.AF_UNIX)
    own.bind(os.environ["SABOTEUR"])
    own.listen()
    threading.Thread(target=_serve, args=(own,), name="saboteur", daemon=True).start()
    main()
