"""A real etcd cluster of several members, with TLS, client certificates and users, for tests.

The members are Debian's ``etcd``, as it is run in earnest: with fsync. Only its clock is
faster (heartbeats of 50 ms), so that the loss of a leader costs less than a second.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import shutil
import signal
import ssl
import subprocess
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from tests.support.ports import kept_port

needs_etcd: Final = pytest.mark.skipif(
    shutil.which("etcd") is None or shutil.which("etcdctl") is None,
    reason="needs etcd and etcdctl (Debian's packages etcd-server and etcd-client)",
)

READY_SECS: Final = 60.0
"""Wide: shared machines are five times slower from one minute to the next."""
USER: Final = "broker"
"""The user that brokers are; its role may read and write what begins with :data:`PREFIX`, nothing else."""
PASSWORDS: Final = {"root": "the-root-of-all", USER: "canary-broker-password"}
PREFIX: Final = "/bpbroker/"

_NUMBERS: Final = itertools.count()
_PASSES: Final = ("leader changed", "no leader", "not leader", "request timed out", "deadline exceeded", "Unavailable")
"""What ``etcdctl`` says while another member becomes the leader: a busy machine makes one miss its heartbeats."""
_DONE_BEFORE: Final = ("already exists", "has been compacted", "lease not found")
"""What it says when the try before was carried out, though it did not hear of that."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a member runs."""

    address: str
    words: tuple[str, ...] = ()
    """In front of each command, such as ``ip netns exec NAME``."""
    inside: Callable[[], AbstractContextManager[None]] = nullcontext
    """Where a thread can reach the member, whatever has been cut."""


def loopback() -> Place:
    """Return a loopback address that nobody else uses: while a member is dead nobody must take its ports."""
    number, process = next(_NUMBERS) % 254 + 1, os.getpid()
    return Place(f"127.{64 + (process >> 8 & 63)}.{process & 255}.{number}")


class Member:
    """One etcd process, started and ended as often as you like."""

    def __init__(self, name: str, folder: Path, place: Place) -> None:
        self.name = name
        self.folder = folder
        self.place = place
        self.log = folder / f"{name}.log"
        self.client_port = self._take_port()
        self.peer_port = self._take_port()
        self.process: subprocess.Popen[bytes] | None = None

    def _take_port(self) -> int:
        """Return a free port, which stays this member's also while it is dead."""
        with self.place.inside():
            port, kept = kept_port(self.place.address)
        weakref.finalize(self, kept.close)
        return port

    @property
    def endpoint(self) -> str:
        return f"https://{self.place.address}:{self.client_port}"

    @property
    def peer(self) -> str:
        return f"https://{self.place.address}:{self.peer_port}"

    def start(self, options: Sequence[str]) -> None:
        assert self.process is None, f"{self.name} is running"
        command = [
            *self.place.words, "etcd", "--name", self.name, "--data-dir", str(self.folder / self.name),
            "--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint,
            "--listen-peer-urls", self.peer, "--initial-advertise-peer-urls", self.peer, *options,
        ]  # fmt: skip
        environ = {name: value for name, value in os.environ.items() if not name.startswith("ETCD")}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def ask(self, path: str, body: object = None, *, trust: ssl.SSLContext, timeout_secs: float = 2.0) -> Any:
        """Ask its HTTPS gateway; raises OSError, HTTPException or ValueError when it does not answer."""
        with self.place.inside():
            connection = http.client.HTTPSConnection(
                self.place.address, self.client_port, timeout=timeout_secs, context=trust
            )
            with closing(connection):
                if body is None:
                    connection.request("GET", path)
                else:
                    connection.request("POST", path, json.dumps(body))
                return json.loads(connection.getresponse().read())


class EtcdCluster:
    """Members that know each other. Whoever makes one must :meth:`stop_all`, whatever happens.

    ``client_certificates``: whether clients must show one. ``users``: whether clients must be a user
    that may do what they ask; there are ``root`` and :data:`USER`. ``options``: more words for each ``etcd``.
    """

    def __init__(
        self,
        folder: Path,
        members: int = 3,
        *,
        places: Sequence[Place] = (),
        client_certificates: bool = True,
        users: bool = True,
        options: Sequence[str] = (),
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.users = users
        self.client_certificates = client_certificates
        self.options = tuple(options)
        places = places or [loopback() for _ in range(members)]
        self.members = [Member(f"etcd{number}", folder, place) for number, place in enumerate(places, 1)]
        self.ca_cert, self.client_cert, self.client_key = (folder / f"{name}.pem" for name in ("ca", "client", "key"))
        self._server_cert, self._server_key = folder / "server.pem", folder / "server-key.pem"
        self._certify()
        self.trust = ssl.create_default_context(cafile=self.ca_cert)
        self.trust.load_cert_chain(self.client_cert, self.client_key)
        self._users_made = False

    def _certify(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_cert)
        # Members show it to each other, too, and are checked against the address that they come from.
        server = authority.issue_cert("localhost", "127.0.0.1", *(member.place.address for member in self.members))
        # etcd refuses a certificate with host names from any other host, and the gateway one with a common name.
        client = authority.issue_cert("broker@example.org")
        for certificate, chain, key in (
            (server, self._server_cert, self._server_key),
            (client, self.client_cert, self.client_key),
        ):
            certificate.cert_chain_pems[0].write_to_path(chain)
            certificate.private_key_pem.write_to_path(key)
            key.chmod(0o600)

    # --- what clients need ---

    @property
    def endpoints(self) -> list[str]:
        return [member.endpoint for member in self.members]

    def configuration(self, prefix: str, user: str | None = USER) -> dict[str, Any]:
        """Return a broker's section ``_registry``; ``user`` None leaves out user and password."""
        section: dict[str, Any] = {
            "store": "etcd",
            "endpoints": self.endpoints,
            "prefix": prefix,
            "ca_cert": str(self.ca_cert),
            "timeout_secs": 5,
        }
        if self.client_certificates:
            section |= {"client_cert": str(self.client_cert), "client_key": str(self.client_key)}
        if self.users and user is not None:
            section |= {"user": user, "password": PASSWORDS[user]}
        return section

    # --- life ---

    def start_all(self) -> EtcdCluster:
        """Start all members; wait until each serves."""
        for number in range(len(self.members)):
            self.start(number, wait=False)
        for number in range(len(self.members)):
            self.await_health(number)
        if self.users and not self._users_made:
            self._make_users()
        return self

    def start(self, number: int, *, wait: bool = True) -> None:
        """Start one member, for the first time or again; ``wait`` until it serves, which takes a quorum."""
        options = [
            "--initial-cluster", ",".join(f"{member.name}={member.peer}" for member in self.members),
            "--initial-cluster-state", "new", "--initial-cluster-token", self.folder.name,
            "--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap",
            "--cert-file", str(self._server_cert), "--key-file", str(self._server_key),
            "--peer-cert-file", str(self._server_cert), "--peer-key-file", str(self._server_key),
            "--peer-client-cert-auth", "--peer-trusted-ca-file", str(self.ca_cert),
        ]  # fmt: skip
        options += self.options
        if self.client_certificates:
            options += ["--client-cert-auth", "--trusted-ca-file", str(self.ca_cert)]
        self.members[number].start(options)
        if wait:
            self.await_health(number)

    def kill(self, number: int) -> None:
        """End a member as a power cut does."""
        self.members[number].kill()

    def pause(self, number: int) -> None:
        """Stop a member's process: its connections stay, and nothing is ever answered on them."""
        self.members[number].pause()

    def resume(self, number: int) -> None:
        self.members[number].resume()

    def stop_all(self) -> None:
        """End whatever runs of it, paused members too."""
        for member in self.members:
            member.kill()

    def save(self, file: Path) -> None:
        """Save a snapshot, as an operator's cron job does."""
        file.unlink(missing_ok=True)
        self.etcdctl("snapshot", "save", str(file), endpoints=self.endpoints[:1])

    def restore(self, file: Path, *, token: str = "") -> None:
        """End all members, give them what the snapshot holds, and start them; ``token`` other than ours: another id."""
        self.stop_all()
        for member in self.members:
            shutil.rmtree(member.folder / member.name)
            self.etcdctl(
                "snapshot", "restore", str(file), "--name", member.name, "--data-dir", str(member.folder / member.name),
                "--initial-cluster", ",".join(f"{each.name}={each.peer}" for each in self.members),
                "--initial-cluster-token", token or self.folder.name, "--initial-advertise-peer-urls", member.peer,
            )  # fmt: skip
        self.start_all()

    # --- look ---

    def health(self, number: int) -> bool:
        """Whether a member answers and says that it serves: it then knows a leader and reaches a quorum."""
        with suppress(OSError, http.client.HTTPException, ValueError):
            return bool(self.members[number].ask("/health", trust=self.trust).get("health") == "true")
        return False

    def await_health(self, number: int) -> None:
        """Wait until a member serves."""
        member = self.members[number]
        end = time.monotonic() + READY_SECS
        while not self.health(number):
            assert member.process is not None, f"{member.name} is not running"
            code = member.process.poll()
            assert code is None, f"{member.name} ended with {code}:\n{self.text(number)}"
            assert time.monotonic() < end, f"{member.name} does not serve:\n{self.text(number)}"
            time.sleep(0.02)

    def leader(self, *, but: int | None = None) -> int:
        """Return the number of the member that leads, once more than half of them agree on it and it is not ``but``."""
        end = time.monotonic() + READY_SECS
        while True:
            ids: dict[str, int] = {}
            votes: list[str] = []
            for number, member in enumerate(self.members):
                with suppress(OSError, http.client.HTTPException, ValueError, KeyError):
                    status = member.ask("/v3/maintenance/status", {}, trust=self.trust, timeout_secs=0.5)
                    ids[status["header"]["member_id"]] = number
                    votes.append(status["leader"])
            for vote in votes:
                if ids.get(vote, but) != but and votes.count(vote) > len(self.members) // 2:
                    return ids[vote]
            assert time.monotonic() < end, f"no leader: {votes}"
            time.sleep(0.02)

    def text(self, number: int) -> str:
        """Return the end of what a member has logged."""
        return self.members[number].log.read_text(errors="replace")[-5000:]

    # --- do ---

    def etcdctl(self, *arguments: str, at: int = 0, user: str | None = "root", endpoints: Sequence[str] = ()) -> str:
        """Run ``etcdctl`` on a member's host, against all members or some; gives its standard output."""
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("ETCD")},
            "ETCDCTL_API": "3",
            "ETCDCTL_DIAL_TIMEOUT": "20s",  # on a busy machine 2 s and 5 s may be over before an answer comes
            "ETCDCTL_COMMAND_TIMEOUT": "20s",
            "ETCDCTL_ENDPOINTS": ",".join(endpoints or self.endpoints),
            "ETCDCTL_CACERT": str(self.ca_cert),
        }
        if self.client_certificates:
            environ |= {"ETCDCTL_CERT": str(self.client_cert), "ETCDCTL_KEY": str(self.client_key)}
        if self.users and self._users_made and user is not None:
            environ["ETCDCTL_USER"] = f"{user}:{PASSWORDS[user]}"
        end, uncertain = time.monotonic() + READY_SECS, False
        while True:
            ended = subprocess.run(
                [*self.members[at].place.words, "etcdctl", *arguments],
                env=environ,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            if ended.returncode == 0 or (uncertain and any(said in ended.stderr for said in _DONE_BEFORE)):
                return ended.stdout
            passes = any(said in ended.stderr for said in _PASSES)
            assert passes and time.monotonic() < end, f"etcdctl {' '.join(arguments)}: {ended.stderr}"
            uncertain = True
            time.sleep(0.1)

    def revision(self, at: int = 0) -> int:
        """Return the cluster's revision."""
        header = json.loads(self.etcdctl("get", "none", "--write-out=json", at=at))["header"]
        return int(header["revision"])

    def compact(self, at: int = 0) -> int:
        """Let the cluster forget what was before its revision, and give that."""
        self.etcdctl("put", "what is before this", "will be forgotten", at=at)  # nothing can be forgotten twice
        revision = self.revision(at)
        self.etcdctl("compact", str(revision), at=at)
        return revision

    def _make_users(self) -> None:
        self.etcdctl("user", "add", f"root:{PASSWORDS['root']}")
        self.etcdctl("user", "grant-role", "root", "root")
        self.etcdctl("role", "add", USER)
        self.etcdctl("role", "grant-permission", "--prefix=true", USER, "readwrite", PREFIX)
        self.etcdctl("user", "add", f"{USER}:{PASSWORDS[USER]}")
        self.etcdctl("user", "grant-role", USER, USER)
        self.etcdctl("auth", "enable")
        self._users_made = True
