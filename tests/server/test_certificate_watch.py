"""The certificate's last days."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bpbroker.server import host_certificate
from bpbroker.server.certificate_watch import CertificateWatch


def test_it_warns_once_a_day_from_thirty_days_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cert = tmp_path / "a.crt"
    host_certificate.make_pair(cert, tmp_path / "a.key")
    end = host_certificate.read_certificate(cert).not_after
    now = [datetime.now(UTC)]
    watch = CertificateWatch(lambda: cert, lambda: now[0])
    pong = watch()
    assert pong.ok
    assert pong.detail == ""
    assert pong.figures["days_left"] > 1000
    assert not caplog.records
    now[0] = end.replace(hour=0, minute=0) - timedelta(days=10)
    for _ in range(3):
        pong = watch()
        assert pong.ok
        assert pong.detail == f"expires in {pong.figures['days_left']} days"
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    now[0] = end + timedelta(days=2)
    pong = watch()
    assert (pong.ok, pong.detail) == (False, "has expired")
    assert len(caplog.records) == 2
    now[0] = host_certificate.read_certificate(cert).not_before - timedelta(days=3)
    pong = watch()
    assert (pong.ok, pong.detail.partition(" UTC")[0][:19]) == (False, "is not valid before")


def test_a_file_that_is_gone_is_said(tmp_path: Path) -> None:
    pong = CertificateWatch(lambda: tmp_path / "nope")()
    assert pong.ok
    assert "cannot be read" in pong.detail
    assert str(tmp_path) not in pong.detail
