"""Files of every version before start with this one, whole; `tests/data/versions/make` had them made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.running import RunningBroker
from tests.support.systems import is_root

VERSIONS = Path(__file__).parents[1] / "data" / "versions"
NAMES = sorted(path.parent.name for path in VERSIONS.glob("*/expected.json"))
# The files name their certificate by the home that they were made in: it is there, and no byte of them is changed.
IN_ITS_HOME = 'mount -t tmpfs tmpfs /srv && mkdir /srv/bpbroker && mount --bind "$0" /srv/bpbroker && exec "$@"'

pytestmark = pytest.mark.skipif(not is_root(), reason="only root can mount")


def test_all_versions_are_there() -> None:
    assert [name.partition("-")[0] for name in NAMES] == [str(n) for n in range(len(NAMES))]
    assert len(NAMES) >= 5


def placed(broker: RunningBroker, version: str, state: str) -> dict[str, Any]:
    """Put a version's files into a broker's home and return what must be in them."""
    shutil.copytree(VERSIONS / version / state / "etc", broker.config.parent, dirs_exist_ok=True)
    for file in broker.config.parent.iterdir():
        file.chmod(0o600)
    pair = trustme.CA().issue_cert("localhost")
    pair.cert_chain_pems[0].write_to_path(str(broker.config.with_suffix(".crt")))
    pair.private_key_pem.write_to_path(str(broker.config.with_suffix(".key")))
    broker.config.with_suffix(".key").chmod(0o600)
    broker.prefix = ("unshare", "--mount", "sh", "-c", IN_ITS_HOME, str(broker.home))
    expected: dict[str, Any] = json.loads((VERSIONS / version / "expected.json").read_text())[state]
    return expected


@pytest.mark.parametrize("state", ["stopped", "killed"])
@pytest.mark.parametrize("version", NAMES)
def test_a_version_before_starts(version: str, state: str, make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker()
    expected = placed(broker, version, state)
    numbers = expected.pop("_numbers", {})
    broker.start()
    assert "was edited" not in broker.text
    listed = broker.request("/services/List/").json["data"]
    assert set(listed) == set(expected)
    for name, entry in expected.items():
        assert broker.get(name).json["data"] == entry
    for owner, number in numbers.items():
        assert broker.request("/services/Number/", pool="racks", owner=owner).json["data"] == number
    assert broker.request("/services/Register/", name="new", data="x").status == 200
    assert broker.stop() == 0, broker.text
    document = json.loads(broker.config.read_text())
    assert document["ossec"]["own"] == [1]
    broker.start()  # and what this version has written of it
    assert broker.get("new").status == 200
    assert broker.get("both").json["data"] == expected["both"]
    assert broker.stop() == 0
