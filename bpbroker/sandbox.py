"""The child process that imports one extension module and runs its calls, one at a time.

It speaks with the broker over its standard input and output: each frame is
four bytes of length, then a JSON object. Before the module is imported these
two are moved to other descriptors; what the module prints goes to standard
error, which the broker writes to its log line by line.
"""

from __future__ import annotations

import base64
import importlib
import inspect
import json
import logging
import os
import struct
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from bpbroker import config, errors
from bpbroker.extensions import Error, one_line

FRAME_MAX_BYTES: Final = 32 * 1024 * 1024
BODY_MAX_BYTES: Final = 16 * 1024 * 1024
_LENGTH: Final = struct.Struct(">I")


def write_frame(stream: BinaryIO, message: Mapping[str, Any]) -> None:
    """Write one frame.

    Raises:
        OSError: the other side has gone.
    """
    content = json.dumps(message).encode()
    stream.write(_LENGTH.pack(len(content)) + content)
    stream.flush()


def read_frame(stream: BinaryIO) -> dict[str, Any] | None:
    """Read one frame; None at the end of the stream, or when what comes is no frame."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (size,) = _LENGTH.unpack(head)
    if size > FRAME_MAX_BYTES:
        return None
    content = stream.read(size)
    if len(content) < size:
        return None
    try:
        message = json.loads(content)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


class Registry:
    """The running broker's registry, for extensions: ``rh.registry``.

    Every method raises an error of :mod:`bpbroker.errors` as the client would
    see it: NotFound, AlreadyExists, BadRequest, Unavailable.
    """

    def __init__(self, ask: Any) -> None:
        self._ask = ask

    def register(self, name: str, data: Mapping[str, Any] | str) -> dict[str, Any]:
        """Create an entry; give it as stored."""
        return dict(self._ask("Register", name, data))

    def replace(self, name: str, data: Mapping[str, Any] | str) -> dict[str, Any]:
        """Create or overwrite an entry; give it as stored."""
        return dict(self._ask("Replace", name, data))

    def update(self, name: str, data: Mapping[str, Any] | str) -> dict[str, Any]:
        """Merge into an entry, creating it if absent; give it as stored."""
        return dict(self._ask("Update", name, data))

    def get(self, name: str) -> dict[str, Any]:
        """Give an entry."""
        return dict(self._ask("Get", name, None))

    def delete(self, name: str) -> None:
        """Remove an entry, present or not."""
        self._ask("Delete", name, None)

    def list(self, prefix: str = "") -> dict[str, dict[str, Any]]:
        """Give all entries whose name begins with ``prefix``."""
        return dict(self._ask("List", prefix, None))


class RequestHandler:
    """What a method gets: the request, and where to put the answer.

    Attributes:
        qs: first value of each parameter; the access key is never among them.
        data: the answer when ``status`` is 200: text, bytes, or a JSON value.
        status: HTTP status of the answer.
        status_message: one line for the client when ``status`` is not 200.
        content_type: of the answer.
        config: the extension's own section of the configuration.
        registry: the running broker's registry.
        log: a logger whose lines go to the broker's log.
        request_id: the id under which the broker logs this request.
    """

    def __init__(
        self, call: Mapping[str, Any], own: Mapping[str, Any], registry: Registry, log: logging.Logger
    ) -> None:
        self.qs: dict[str, str] = dict(call["qs"])
        self.data: Any = None
        self.status: Any = 200
        self.status_message: str = ""
        self.content_type: Any = "application/json"
        self.config = own
        self.registry = registry
        self.log = log
        self.request_id: str = call["request_id"]
        self._source: str = call["source"]

    def RequestingHost(self) -> str:  # noqa: N802 - the name that modules written for 0.22 use
        """Give the client's address."""
        return self._source


def answer_of(rh: RequestHandler) -> dict[str, Any]:
    """Give the result frame of what a method left in its handler.

    Raises:
        TypeError, ValueError: it is nothing that can be sent.
    """
    status = rh.status
    if type(status) is not int or not 200 <= status <= 599:
        raise ValueError(f"rh.status is {status!r}, not an HTTP status from 200 to 599")
    message = " ".join(str(rh.status_message or "").split()) or f"The extension answered {status}"
    kind = rh.content_type
    if not (type(kind) is str and kind and kind.isascii() and kind.isprintable()):
        raise ValueError("rh.content_type is not a media type")
    body = _body(rh.data) if status == 200 else b""
    if len(body) > BODY_MAX_BYTES:
        raise ValueError(f"rh.data is larger than {BODY_MAX_BYTES} bytes")
    return {
        "kind": "result",
        "status": status,
        "message": message[:1000],
        "content_type": kind,
        "body": base64.b64encode(body).decode(),
    }


def _body(data: Any) -> bytes:
    if data is None:
        return b""
    if isinstance(data, (bytes, bytearray, memoryview)):
        return bytes(data)
    if isinstance(data, str):
        return data.encode()
    return json.dumps(data).encode()


class _Child:
    """The child's side of the conversation."""

    def __init__(self, inward: BinaryIO, outward: BinaryIO) -> None:
        self._inward = inward
        self._outward = outward
        self._methods: dict[str, Any] = {}
        self._registry = Registry(self._ask_registry)
        self._own: Mapping[str, Any] = {}
        self._log = logging.getLogger("extension")

    def run(self) -> None:
        """Import the module, then run calls until the broker closes the stream."""
        begin = read_frame(self._inward)
        if begin is None:
            return
        _limit_memory(begin["memory_max_bytes"])
        config.data = config.freeze(begin["settings"])
        self._own = config.freeze(begin["settings"].get(begin["namespace"], {}))
        self._log = logging.getLogger(begin["namespace"])
        try:
            self._methods = _load(begin["namespace"], Path(begin["lib"]))
        except BaseException as error:  # noqa: BLE001 - a module may raise anything, SystemExit too
            traceback.print_exc()
            write_frame(self._outward, {"kind": "broken", "problem": one_line(error)})
            return
        write_frame(self._outward, {"kind": "ready", "methods": sorted(self._methods)})
        while True:
            call = read_frame(self._inward)
            if call is None:
                return
            write_frame(self._outward, self._run_call(call))

    def _run_call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        method = self._methods.get(call["method"])
        if method is None:
            return {"kind": "unknown"}
        rh = RequestHandler(call, self._own, self._registry, self._log)
        try:
            method(rh)
            return answer_of(rh)
        except Error as error:
            rh.status, rh.status_message = error.status, error.message
            try:
                return answer_of(rh)
            except ValueError:
                return _failed()
        except BaseException:  # noqa: BLE001 - SystemExit and MemoryError fail this call only
            return _failed()

    def _ask_registry(self, kind: str, name: str, data: Any) -> Any:
        write_frame(self._outward, {"kind": "registry", "method": kind, "name": name, "data": data})
        reply = read_frame(self._inward)
        if reply is None:
            raise errors.Unavailable("The broker has gone")
        if "status" in reply:
            raise errors.from_status(reply["status"], reply["message"])
        return reply["value"]


def _failed() -> dict[str, Any]:
    return {"kind": "failed", "trace": traceback.format_exc()[-8000:]}


def _limit_memory(limit: int | None) -> None:
    if limit is not None and sys.platform != "win32":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _load(namespace: str, lib: Path) -> dict[str, Any]:
    """Import the module and give its methods: functions defined in it whose name has no ``_`` in front."""
    sys.path.insert(0, str(lib))
    module = importlib.import_module(namespace)
    file = Path(getattr(module, "__file__", None) or "/")
    if not file.resolve().is_relative_to(lib.resolve()):
        raise ImportError(f"{namespace} is a module of Python's own, not the one in {lib}")
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_") and inspect.isfunction(value) and value.__module__ == module.__name__
    }


def main() -> None:
    """Take standard input and output for the conversation, and run."""
    inward = os.fdopen(os.dup(0), "rb")
    outward = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a TextIOWrapper in a fresh process
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    _Child(inward, outward).run()


if __name__ == "__main__":
    main()
