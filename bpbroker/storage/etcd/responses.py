"""What a response of etcd's gateway means: a document, a refusal by the cluster, or a failure of one endpoint."""

from __future__ import annotations

import base64
import json
import logging
from contextlib import suppress
from typing import Any, Final

from bpbroker.errors import ConfigurationError, StorageFull, Unavailable

logger = logging.getLogger(__name__)

NO_ANSWER: Final = "the registry's etcd cluster does not answer"
AWAY: Final = "The registry's etcd cluster does not answer"

# gRPC's status codes, as the gateway puts them into an error's body.
_INVALID_ARGUMENT, _NOT_FOUND, _NOT_PERMITTED, _EXHAUSTED, _PRECONDITION, _OUT_OF_RANGE, _UNAUTHENTICATED = (
    3, 5, 7, 8, 9, 11, 16,
)  # fmt: skip
_OF_THE_CLUSTER: Final = frozenset(
    {_INVALID_ARGUMENT, _NOT_FOUND, _NOT_PERMITTED, _PRECONDITION, _OUT_OF_RANGE, _UNAUTHENTICATED}
)

# Some errors share their code with others: etcd's api/v3rpc/rpctypes/error.go has the texts.
_NO_SPACE: Final = "etcdserver: mvcc: database space exceeded"
_OLD_REVISION: Final = "etcdserver: revision of auth store is old"
_NOT_LEADER: Final = "etcdserver: not leader"
_LEASE_GONE: Final = "etcdserver: requested lease not found"
_LEASE_EXISTS: Final = "etcdserver: lease already exists"


_MEND: Final = {
    "etcdserver: authentication failed, invalid user ID or password": "; correct _registry.user or _registry.password",
    "etcdserver: authentication is not enabled": "; take _registry.user and _registry.password out, or switch it on",
    "etcdserver: user name is empty": "; set _registry.user and _registry.password",
    "etcdserver: permission denied": (
        "; _registry.user must be allowed to read and write all keys that begin with _registry.prefix and a slash"
    ),
}
"""What an operator does about a refusal; clients may see it, so it has no values."""


class Unreachable(Unavailable):
    """No endpoint answered as it should; ``outcome_known`` is False if one may have received the request."""


class Compacted(Unavailable):
    """The cluster has forgotten the versions that were asked for."""


class LeaseGone(Unavailable):
    """There is no such lease: it has run out, or never was."""


class LeaseExists(Unavailable):
    """There is a lease with this id already."""


class Refused(Exception):
    """The response of one endpoint that every other endpoint would give as well."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        """gRPC's status code."""
        self.text = text

    @property
    def stale_token(self) -> bool:
        """Whether a new token may help: it lives for five minutes without use, and not longer than the member."""
        return self.code == _UNAUTHENTICATED or self.text == _OLD_REVISION

    @property
    def forgotten(self) -> bool:
        """Whether the revision that was asked for is gone."""
        return self.code == _OUT_OF_RANGE

    def meaning(self, *, sent: bool) -> Unavailable | ConfigurationError:
        """Return the error of the call. ``sent``: an earlier attempt may have changed something."""
        if self.forgotten:
            return Compacted("The registry's etcd cluster has forgotten these versions")
        if self.code == _EXHAUSTED:
            error = StorageFull("The etcd cluster's space is used up: nothing was changed")
            error.outcome_known = not sent
            return error
        lease = {_LEASE_GONE: LeaseGone, _LEASE_EXISTS: LeaseExists}.get(self.text)
        if lease is not None:
            fault = lease(f"The registry's etcd cluster refuses: {self.text}")
            fault.outcome_known = not sent
            return fault
        mend = _MEND.get(self.text, "")
        logger.error("etcd refuses: %s%s", self.text, mend)
        return ConfigurationError(f"The registry's etcd cluster refuses: {self.text}{mend}")


class Failed(Exception):
    """One endpoint did not answer as it should; another one may. The text has neither addresses nor secrets."""

    def __init__(self, why: str, *, sent: bool, distrust: bool = False) -> None:
        super().__init__(why)
        self.sent = sent
        """Whether the endpoint may have received the request."""
        self.distrust = distrust
        """Whether one side does not accept the certificate of the other."""


def encode(key: bytes) -> str:
    """Return bytes as the gateway takes them."""
    return base64.b64encode(key).decode()


def decode(text: str) -> bytes:
    """Return the bytes that the gateway sent."""
    return base64.b64decode(text)


def document(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a successful response.

    Raises:
        Failed: it is something else.
    """
    with suppress(ValueError, RecursionError):
        found = json.loads(body)
        if isinstance(found, dict):
            return found
    raise _strange()


def results(body: bytes, count: int) -> list[dict[str, Any]]:
    """Return the results in a successful response of a streaming method, one a line; the last ones may be missing.

    Raises:
        Refused, Failed: there is none, or there are more than ``count``.
    """
    messages = [document(line) for line in body.splitlines() if line.strip()]
    for message in messages:
        if "error" in message:
            raise error(json.dumps(message["error"]).encode())
    found = [message.get("result") for message in messages]
    if not 0 < len(found) <= count or not all(isinstance(each, dict) for each in found):
        raise _strange()
    return [each for each in found if each is not None]


def error(body: bytes) -> Refused | Failed:
    """Return what a response means whose status is not 200."""
    with suppress(ValueError, TypeError, AttributeError, RecursionError):
        found = json.loads(body)
        # In a stream they have other names.
        code = int(found.get("code", found.get("grpc_code", 0)))
        text = str(found.get("message") or found["error"])
        if (code in _OF_THE_CLUSTER and text != _NOT_LEADER) or (code == _EXHAUSTED and text == _NO_SPACE):
            return Refused(code, text)
        return Failed(text, sent=True)
    return _strange()


def _strange() -> Failed:
    return Failed("it answers something else than etcd does", sent=True)
