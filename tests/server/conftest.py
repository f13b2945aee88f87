"""Fixtures of the server's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpbroker.server import host_certificate


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    cert, key = tmp_path / "a.crt", tmp_path / "a.key"
    host_certificate.make_pair(cert, key, ["node-7", "10.0.0.7", "fe80::1", "bücher.example"])
    return cert, key
