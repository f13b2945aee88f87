"""Extension actors, each with a lib folder of its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bpbroker.actors.base import ActorAddress, launch
from bpbroker.actors.extension import Extension
from bpbroker.actors.registry import Registry
from bpbroker.actors.registry_local import LocalBackend
from bpbroker.config import layers
from bpbroker.frontend.extension_calls import understand
from bpbroker.storage.embedded.store import EmbeddedStore
from tests.support.extension import MODULE, WAIT_SECS, Made, Make


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[ActorAddress]:
    settings = layers.freeze(layers.DEFAULTS)
    address = ActorAddress(
        "registry", launch(Registry, LocalBackend(lambda: EmbeddedStore(tmp_path / "j", dict)), settings)
    )
    yield address
    assert address.stop(WAIT_SECS)


@pytest.fixture
def make(tmp_path: Path, registry: ActorAddress) -> Iterator[Make]:
    lib = tmp_path / "lib"
    lib.mkdir()
    made: list[ActorAddress] = []

    def make(namespace: str = "demo", source: str | None = MODULE, answers: Path | None = None, **section: Any) -> Made:
        if source is not None:
            path = lib.joinpath(*namespace.split(".")).with_suffix(".py")
            path.parent.mkdir(exist_ok=True)
            path.write_text(source)
        settings: dict[str, Any] = {**layers.thaw(layers.DEFAULTS), namespace: section}
        name = f"extension {namespace}"
        ref = launch(Extension, namespace, lib, layers.freeze(settings), registry, understand, answers)
        made.append(ActorAddress(name, ref))
        return Made(lib, made[-1], settings)

    yield make
    for address in made:
        assert address.stop(WAIT_SECS)


@pytest.fixture
def demo(make: Make) -> Made:
    return make()
