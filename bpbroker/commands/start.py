"""``bpbroker start``."""

from __future__ import annotations

import gc
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from bpbroker import process, progress
from bpbroker.commands.scope import FILE, Scope, command, pass_scope
from bpbroker.runtime.logs import FORMATS, LEVELS, LogOptions


class _Port(click.IntRange):
    """A port; what Kubernetes puts into BPBROKER_…_PORT for a service of that name counts as not given."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and value.startswith(("tcp://", "udp://")):
            return None
        return super().convert(value, param, ctx)


@command("start", short_help="Start service")
@click.option("--listen-ip", envvar="BPBROKER_LISTEN_IP", metavar="ADDRESS", help="Address to bind to, for this run.")
@click.option(
    "--listen-port", envvar="BPBROKER_LISTEN_PORT", metavar="PORT", type=_Port(0, 65535),
    help="TCP and UDP port, for this run; 0 takes any free one.",
)  # fmt: skip
@click.option("--ssl-cert", envvar="BPBROKER_SSL_CERT", type=FILE, metavar="FILE", help="Certificate, for this run.")
@click.option("--ssl-key", envvar="BPBROKER_SSL_KEY", type=FILE, metavar="FILE", help="Private key, for this run.")
@click.option("--daemon", is_flag=True, envvar="BPBROKER_DAEMON", help="Go into the background once ready.")
@click.option("--pid-file", envvar="BPBROKER_PID_FILE", type=FILE, metavar="FILE", help="Write the process id there.")
@click.option(
    "--log-file", envvar="BPBROKER_LOG_FILE", type=FILE, metavar="FILE",
    help="Log to this file, which is rotated at 10 MiB; default is standard error.",
)  # fmt: skip
@click.option(
    "--log-format", envvar="BPBROKER_LOG_FORMAT", type=click.Choice(FORMATS), default="text", show_default=True,
    help="One line or one JSON object an event.",
)  # fmt: skip
@click.option(
    "--log-level", envvar="BPBROKER_LOG_LEVEL", type=click.Choice(LEVELS, case_sensitive=False),
    help="Least level that is logged: info, or debug with --debug.",
)  # fmt: skip
@pass_scope
def start(
    scope: Scope,
    *,
    listen_ip: str | None,
    listen_port: int | None,
    ssl_cert: Path | None,
    ssl_key: Path | None,
    daemon: bool,
    pid_file: Path | None,
    log_file: Path | None,
    log_format: str,
    log_level: str | None,
) -> None:
    """Run the broker.

    Keeps running in the foreground until SIGINT (Ctrl-C) or SIGTERM, then
    writes the configuration and ends. Every option can be given by an
    environment variable too, such as BPBROKER_LISTEN_PORT.
    """
    gc.disable()  # what a start makes stays; the broker looks for cycles once it is ready
    progress.show_on(None)  # the log is there, and the background is another process
    if not daemon:
        process.leave_first_process()
    from bpbroker.broker import run
    from bpbroker.runtime.plan import RunOptions

    log = LogOptions(
        file=log_file.absolute() if log_file else None,
        format=log_format,
        level=log_level or ("debug" if scope.debug else "info"),
    )
    options = RunOptions(
        config=scope.config,
        listen_ip=listen_ip,
        listen_port=listen_port,
        ssl_cert=ssl_cert.absolute() if ssl_cert else None,
        ssl_key=ssl_key.absolute() if ssl_key else None,
        daemon=daemon,
        pid_file=pid_file.absolute() if pid_file else None,
        log=log,
    )
    sys.exit(run(options, _tell))


def _tell(line: str) -> None:
    with suppress(OSError):  # a closed output is no reason not to start
        click.echo(line, err=True)
