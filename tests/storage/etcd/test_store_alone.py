"""What a store on etcd does by itself, without a cluster."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from bpbroker.storage.etcd import store as etcd_store
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.store import EtcdStore

HANGING = """
import threading
from bpbroker.storage.etcd.options import EtcdOptions
from bpbroker.storage.etcd.registry_id import made
from bpbroker.storage.etcd.restore_detection import Moment
from bpbroker.storage.etcd.store import EtcdStore

store = EtcdStore(EtcdOptions(("http://127.0.0.1:1",), "/x"))
begun = threading.Event()

def hang(_):
    begun.set()
    threading.Event().wait()

store._known = lambda _: Moment(0, 5, None, made(0))
store._read = lambda *_: ([None], 5)
store._keep_alive = hang
store._note_lease(store._keys.entry("_session/s"), "1")
threading.Thread(target=store.renew_sessions, args=(["s"],), daemon=True).start()
assert begun.wait(30)
store.close()
print("closed", end="")
"""


@pytest.fixture
def store() -> Iterator[EtcdStore]:
    made = EtcdStore(EtcdOptions(("http://127.0.0.1:1",), "/x"))
    yield made
    made.close()


def test_a_lease_that_is_being_filled_up_does_not_keep_the_process_from_ending() -> None:
    """A name server that does not answer, for one, is waited for as long as the system likes."""
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "closed", "")


def test_leases_of_sessions_that_ended_long_ago_keep_none_out(
    store: EtcdStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_store, "_LEASES_MAX", 3)
    for number in range(10):
        store._note_lease(f"key {number}", str(number))
        assert store._leases[f"key {number}"] == str(number)
        assert len(store._leases) <= 3
    store._note_lease("key 9", "")
    assert "key 9" not in store._leases
