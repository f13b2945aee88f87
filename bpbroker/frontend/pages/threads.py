"""The threads that make pages.

They are apart from the server's workers, and half as many as these (one at least): a page that hangs, or a list that
takes long, delays only other pages.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from bpbroker.errors import Overloaded
from bpbroker.messages import fail, settle
from bpbroker.server.response import Response

logger = logging.getLogger(__name__)

WAITING_MAX: Final = 64
"""How many pages may wait to be made; further ones are refused, to be tried again."""

WAITING_OF_ONE_MAX: Final = WAITING_MAX // 4
"""How many of these may be one client's: the sign-in needs no key, and one client must not block it for all others."""

_Work = tuple[Callable[[], Response], "Future[Response]", str]


class PageThreads:
    """A few threads and a bounded queue.

    The threads start with the first page. They are daemon threads, so that no page can delay an exit.

    Args:
        count: how many there are.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._queue: queue.SimpleQueue[_Work] = queue.SimpleQueue()
        self._by_client: dict[str, int] = {}
        """Client to the number of its pages that wait or are made."""
        self._counting = threading.Lock()
        self._begun = threading.Lock()
        self._threads: list[threading.Thread] = []

    def ask(self, work: Callable[[], Response], client: str = "") -> Future[Response]:
        """Queue a page; return a future of what ``work`` returns or raises. Only the loop's thread calls this.

        Args:
            work: makes the page.
            client: see :func:`bpbroker.server.request.network_of`.

        Raises:
            Overloaded: too many wait already.
        """
        if self._queue.qsize() >= WAITING_MAX or self._by_client.get(client, 0) >= WAITING_OF_ONE_MAX:
            raise Overloaded("Too many pages are being made at the moment; try again in a few seconds")
        if not self._threads:
            self._start()
        reply: Future[Response] = Future()
        with self._counting:
            self._by_client[client] = self._by_client.get(client, 0) + 1
        self._queue.put((work, reply, client))
        return reply

    def _ended(self, client: str) -> None:
        with self._counting:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

    def _start(self) -> None:
        with self._begun:
            for number in range(self._count if not self._threads else 0):
                thread = threading.Thread(target=self._run, name=f"page-{number}", daemon=True)
                thread.start()
                self._threads.append(thread)

    def _run(self) -> None:
        while True:
            work, reply, client = self._queue.get()
            try:
                if not reply.cancelled():  # else its browser has gone
                    settle(reply, work())
            except BaseException as error:  # noqa: BLE001 - SystemExit too: a page must not end its thread
                fail(reply, error)
            self._ended(client)
            del work, reply  # or the last page would be kept until the next one
