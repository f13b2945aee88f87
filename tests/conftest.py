"""What all tests share: hypothesis' profile, the two tiers, real broker processes, real etcd clusters."""

from __future__ import annotations

import functools
import itertools
import logging
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.support.etcd_cluster import PREFIX, EtcdCluster
from tests.support.etcd_network import EtcdNetwork, wire
from tests.support.network import Network, wired
from tests.support.running import RunningBroker
from tests.support.systems import is_wine

# Who starts the tests in the background of a script has interrupts ignored, and every child would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Without bytecode each worker would compile all tests, and each program that a test starts the whole product.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# Shared machines are up to five times slower from one minute to the next: no test may fail for that.
settings.register_profile(
    "bpbroker", max_examples=10 if is_wine() else 100, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("bpbroker")

ON_WINDOWS = os.name == "nt"
"""There is no system tier there: what starts a process is run with the rest."""
TESTS = Path(__file__).parent
MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of the test's own is made there
SYSTEM_FOLDERS = ("e2e", "benchmarks", "docs", "machine", "packaging", "support")
PROGRAM_FOLDERS = ("actors/extension",)
"""Each test here starts a process of its own, as those with the mark ``program`` do."""
SYSTEM_FIXTURES = frozenset({"make_broker", "etcd", "make_etcd", "etcd_wires"})
"""What starts real brokers or etcd clusters; all fixtures that do so use one of these."""

_REGISTRIES = itertools.count()


def _fast_tier(config: pytest.Config) -> bool:
    """Whether the command line names neither files nor a mark."""
    return config.args_source is pytest.Config.ArgsSource.TESTPATHS and config.option.markexpr in ("", "not system")


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """Run the fast tier with two workers on each core, with its files in memory."""
    # A worker of xdist has the same command line: it must not start workers of its own.
    if not _fast_tier(config) or hasattr(config, "workerinput"):
        return
    if getattr(config.option, "numprocesses", 0) is None and not config.option.usepdb:
        # Half of a test's time is waiting, for a thread or an end of time.
        config.option.numprocesses = 2 * config.hook.pytest_xdist_auto_num_workers(config=config)
    if config.option.basetemp is None and "TMPDIR" not in os.environ and _holds_files(MEMORY):
        # What lasts is the system tier's, on real disks: here each sync of a file would only be waited for.
        folder = tempfile.mkdtemp(prefix="bpbroker-", dir=MEMORY)
        Path(folder).chmod(0o711)  # tests become other users
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        config.option.basetemp = f"{folder}/t"
        os.environ["TMPDIR"] = folder
        tempfile.tempdir = None  # looked up anew


def _holds_files(folder: Path) -> bool:
    """Whether the tests find room there, and may run what they write: containers often have neither."""
    try:
        found = os.statvfs(folder)
    except (OSError, AttributeError):
        return False
    return not found.f_flag & os.ST_NOEXEC and found.f_bavail * found.f_frsize > 1 << 30


def pytest_configure(config: pytest.Config) -> None:
    """Choose the fast tier; in each worker of xdist too, which selects for itself."""
    if _fast_tier(config):
        config.option.markexpr = "not system"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark as ``system`` what starts programs of its own or needs more than this process; the rest is the fast tier."""
    for item in items:
        starts_program = _is_below(item.path, PROGRAM_FOLDERS) or item.get_closest_marker("program") is not None
        if (
            _is_below(item.path, SYSTEM_FOLDERS)
            or (starts_program and not ON_WINDOWS)
            or not SYSTEM_FIXTURES.isdisjoint(getattr(item, "fixturenames", ()))
        ):
            item.add_marker("system")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave folders out that have nothing of the fast tier: importing their modules takes longer than many tests."""
    left_out = SYSTEM_FOLDERS if ON_WINDOWS else (*SYSTEM_FOLDERS, *PROGRAM_FOLDERS)
    return True if _fast_tier(config) and _is_below(collection_path, left_out) else None


@functools.cache
def _is_below(path: Path, folders: tuple[str, ...]) -> bool:
    return any(path.is_relative_to(TESTS / folder) for folder in folders)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep lone surrogates out of what was captured: xdist cannot send them to the process that reports."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of tests/machine; here, so that they are known wherever pytest is started."""
    group = parser.getgroup("machine")
    group.addoption("--machine", action="store_true", help="run the tests that boot virtual machines (tests/machine)")
    group.addoption("--machine-cache", default="~/.cache/bpbroker-machines", help="folder for the machines' images")
    group.addoption("--machine-accel", default="tcg", help="qemu's accelerator")


@pytest.fixture(autouse=True)
def _logging_is_left_as_it_was() -> Iterator[None]:
    """A level or an outlet that a test leaves behind would have later tests see what is not theirs."""
    before = _logging()
    yield
    assert _logging() == before, "tests.support.own_logging restores it"


def _logging() -> list[tuple[int, list[logging.Handler], bool]]:
    loggers = [logging.getLogger(name) for name in ("", "bpbroker", "bpbroker.access")]
    return [
        (each.level, [own for own in each.handlers if type(own).__module__ != "_pytest.logging"], each.disabled)
        for each in loggers
    ]


@pytest.fixture
def make_broker(tmp_path: Path) -> Iterator[Callable[..., RunningBroker]]:
    """Yield a maker of brokers, not started; each has a home of its own. All are gone after the test."""
    made: list[RunningBroker] = []

    def make(configuration: Mapping[str, Any] | None = None, *options: str) -> RunningBroker:
        made.append(RunningBroker(tmp_path / f"home{len(made)}", configuration, *options))
        return made[-1]

    yield make
    for each in made:
        each.kill()


@pytest.fixture
def broker(make_broker: Callable[..., RunningBroker]) -> RunningBroker:
    """Return a running broker with nothing configured."""
    return make_broker().start()


@pytest.fixture(scope="session")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdCluster]:
    """Yield a running etcd cluster that all tests share: who kills members needs one from :func:`make_etcd`."""
    cluster = EtcdCluster(tmp_path_factory.mktemp("etcd"))
    try:
        yield cluster.start_all()
    finally:
        cluster.stop_all()


@pytest.fixture
def etcd_section(etcd: EtcdCluster) -> dict[str, Any]:
    """Return the section ``_registry`` of an empty registry on the shared cluster."""
    return etcd.configuration(f"{PREFIX}test{next(_REGISTRIES)}")


@pytest.fixture
def make_etcd(tmp_path: Path) -> Iterator[Callable[..., EtcdCluster]]:
    """Yield a maker of etcd clusters, not started. All are gone after the test."""
    made: list[EtcdCluster] = []

    def make(members: int = 3, **options: Any) -> EtcdCluster:
        made.append(EtcdCluster(tmp_path / f"etcd{len(made)}", members, **options))
        return made[-1]

    yield make
    for each in made:
        each.stop_all()


@pytest.fixture(scope="session")
def etcd_wires() -> Iterator[Network]:
    """Yield the hosts of ``tests/support/etcd_network.py`` with nothing running on them."""
    with wired(Network("et"), wire) as network:
        yield network


@pytest.fixture
def etcd_network(etcd_wires: Network, tmp_path: Path) -> Iterator[EtcdNetwork]:
    """Yield a running etcd cluster on hosts of its own, whose cables may be cut."""
    made = EtcdNetwork.on(etcd_wires, tmp_path / "etcd")
    try:
        made.etcd.start_all()
        yield made
    finally:
        made.etcd.stop_all()
        made.heal()
