"""The extension module that the tests of the extension actor install; its methods do what their names say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from os import system  # noqa: F401 - no method: it is another module's
from pathlib import Path

import bpbroker.config
import bpbroker.extensions
from bpbroker.extensions import Request

CONSTANT = 7
calls = 0


class Class:
    def __init__(self, rh: Request) -> None:
        pass


def Test(rh: Request) -> None:
    rh.data = json.dumps(rh.qs)


def Echo(rh: Request) -> None:
    rh.data = {"qs": rh.qs, "from": rh.RequestingHost(), "id": rh.request_id, "pid": os.getpid()}


def _Private(rh: Request) -> None:
    rh.data = "private"


async def Later(rh: Request) -> None:
    rh.data = "never"


def Many(rh: Request) -> Iterator[None]:
    yield


def Count(rh: Request) -> None:
    global calls
    calls += 1
    rh.data = str(calls)


def Old(rh: Request) -> None:
    with bpbroker.config.rlock:
        rh.status = 409
        rh.status_message = "In use"


def Config(rh: Request) -> None:
    try:
        bpbroker.config.data["new"] = 1  # type: ignore[index]  # that it is refused is tested
    except TypeError:
        rh.data = {"all": bpbroker.config.data, "own": rh.config}


def Refuse(rh: Request) -> None:
    raise bpbroker.extensions.Error(418, "No\r\nX-Bad: tea")


def Raise(rh: Request) -> None:
    raise ValueError("canary-7391")


def Exit(rh: Request) -> None:
    sys.exit(0)


def OsExit(rh: Request) -> None:
    os._exit(3)


def Crash(rh: Request) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def Thread(rh: Request) -> None:
    threading.Thread(target=os._exit, args=(4,)).start()
    time.sleep(60)


def Eat(rh: Request) -> None:
    held = []
    while True:
        held.append(bytearray(1 << 20))


def Sleep(rh: Request) -> None:
    time.sleep(float(rh.qs.get("data", 1000)))
    rh.data = "slept"


def Begin(rh: Request) -> None:
    Path(rh.qs["data"]).touch()
    time.sleep(1000)


def Wait(rh: Request) -> None:
    while not Path(rh.qs["data"]).exists():
        time.sleep(0.005)
    rh.data = str(os.getpid())


def Grandchild(rh: Request) -> None:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    Path(rh.qs["data"]).write_text(str(child.pid))
    time.sleep(1000)


def Orphan(rh: Request) -> None:
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(5)


def Descriptors(rh: Request) -> None:
    found = list(Path("/proc/self/fd").iterdir())
    rh.data = [str(path.readlink()) for path in found if path.exists()]


def Set(rh: Request) -> None:
    rh.data = eval(rh.qs["value"])


def Status(rh: Request) -> None:
    rh.status = eval(rh.qs["value"])
    rh.status_message = "one\r\nX-Bad: two"


def Type(rh: Request) -> None:
    rh.content_type = eval(rh.qs["value"])


def Noise(rh: Request) -> None:
    print("printed")
    print("complained", file=sys.stderr)
    os.write(1, b"written\n")
    subprocess.run(["cmd", "/c", "echo echoed"] if os.name == "nt" else ["echo", "echoed"], check=False)
    rh.log.warning("logged %d\nin two lines", 7)
    rh.data = "done"


def Deep(rh: Request) -> None:
    Deep(rh)


def Read(rh: Request) -> None:
    rh.data = {"input": sys.stdin.read()}


def Entries(rh: Request) -> None:
    made = rh.registry.register("one", {"a": 1})
    changed = rh.registry.update("one", {"b": 2})
    rh.registry.replace("two", "text")
    rh.registry.delete("gone")
    rh.data = {"made": made, "changed": changed, "got": rh.registry.get("one"), "all": sorted(rh.registry.list(""))}


def Missing(rh: Request) -> None:
    rh.registry.get("nobody")


def Bad(rh: Request) -> None:
    rh.registry.register("_access_key", "x")


def Environment(rh: Request) -> None:
    rh.data = dict(os.environ)


def Breaks(rh: Request) -> None:
    for descriptor in range(3, 20):
        try:
            os.write(descriptor, b"this is no frame")
        except OSError:
            pass
    time.sleep(1000)
