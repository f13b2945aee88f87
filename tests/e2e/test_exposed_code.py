"""Code that other users may change: start, doctor and install-service say which."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.running import RunningBroker
from tests.support.systems import is_root, posix_only

pytestmark = posix_only("modes of files")

SAYS = "Other users can write to {path}, and so change {what}"


def test_start_and_doctor_name_what_others_may_change(make_broker: Callable[..., RunningBroker]) -> None:
    broker = make_broker({"demo": {}})
    module = broker.lib / "demo.py"
    module.write_text("def Hello(rh): pass\n")
    module.chmod(0o666)
    said = SAYS.format(path=module, what="the extension demo")
    broker.start()
    broker.await_logged(said)
    found = broker.bpbroker("doctor").stdout
    assert f"code: {said}" in found
    assert "take the right to write away from others" in found
    module.chmod(0o644)
    broker.lib.chmod(0o777)
    assert f"code: {SAYS.format(path=broker.lib, what='the lib folder')}" in broker.bpbroker("doctor").stdout
    broker.lib.chmod(0o755)
    assert f"{broker.lib}, and so" not in broker.bpbroker("doctor").stdout


@pytest.mark.skipif(not is_root(), reason="it is for root")
def test_install_service_warns_of_a_program_that_another_user_may_replace(tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "lib").mkdir(parents=True)
    (home / "lib").chmod(0o777)
    done = subprocess.run(
        [sys.executable, "-m", "bpbroker", "--config", str(home / "etc" / "b.json"), "install-service", "--dry-run"],
        env={"BPBROKER_HOME": str(home), "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert f"warning: {SAYS.format(path=home / 'lib', what='the lib folder')}" in done.stderr


def test_a_module_that_others_may_write_is_named(tmp_path: Path) -> None:
    module = tmp_path / "loaded_code.py"
    module.write_text("")
    module.chmod(0o666)
    code = (
        "import sys, pathlib; sys.path.append(sys.argv[1]); import loaded_code;"
        "from bpbroker.runtime.exposure import exposed_code;"
        "print(*exposed_code(pathlib.Path('/nowhere'), ()), sep='|')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert SAYS.format(path=module, what="its modules") in done.stdout
