"""Machines for the tests in this folder; see its README."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.machine.image import INITS, Image, image, missing
from tests.machine.installed import Host, build_bundle, install
from tests.machine.vm import Machine

HERE = Path(__file__).parent


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip all of these tests when not asked for; give them time."""
    wanted = config.getoption("machine")
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.timeout(3600))
            if not wanted:
                item.add_marker(pytest.mark.skip(reason="boots virtual machines: only with --machine"))


@pytest.fixture
def note(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return what notes a line of figures; all are printed at the end."""
    return lambda line: record_property("note", line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the figures that tests noted, also those of tests that failed."""
    for outcome in ("passed", "failed"):
        for report in terminalreporter.getreports(outcome):
            for name, line in report.user_properties:
                if name == "note" and report.when == "call":
                    terminalreporter.write_line(f"{report.nodeid.rpartition('::')[2]}: {line}")


@pytest.fixture(scope="session")
def folder() -> Iterator[Path]:
    """Return a folder with a short name, for disks and Unix sockets."""
    made = Path(tempfile.mkdtemp(prefix="machines-"))
    yield made
    shutil.rmtree(made)


@pytest.fixture(scope="session")
def bundle(folder: Path) -> Path:
    """Return the bundle of this checkout."""
    return build_bundle(folder)


@pytest.fixture(scope="session", params=INITS)
def base(request: pytest.FixtureRequest) -> Image:
    """Return the image with this init system."""
    problem = missing()
    assert not problem, problem
    return image(request.param, Path(request.config.getoption("machine_cache")).expanduser())


@pytest.fixture(scope="session")
def installed(base: Image, bundle: Path, folder: Path, request: pytest.FixtureRequest) -> Path:
    """Return the disk of a machine on which the service was installed; it has not run yet."""
    return install(base, folder / f"install-{base.init}", bundle, request.config.getoption("machine_accel"))


@pytest.fixture
def make_host(
    base: Image, installed: Path, folder: Path, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Host]]:
    """Return a maker of installed machines that are switched off; takes what :class:`Machine` takes."""
    made: list[Machine] = []

    def make(**options: Any) -> Host:
        place = Path(tempfile.mkdtemp(prefix="m", dir=folder)) / "machine"
        accel = request.config.getoption("machine_accel")
        made.append(Machine(base, place, backing=installed, accel=accel, **options))
        return Host(made[-1])

    yield make
    for machine in made:
        machine.kill()
        shutil.rmtree(machine.folder.parent)
