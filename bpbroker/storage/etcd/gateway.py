"""The way to an etcd cluster: its HTTPS/JSON gateway, endpoint after endpoint until the time is over.

etcd3gw makes the connections, finds the gateway's version and knows its
errors. What it does not have is here: several endpoints, a deadline, renewing
the token of a user, and a watch that tells when and why it ended (its own
ends silently in a thread pool, and cannot tell a compacted history).
"""

from __future__ import annotations

import base64
import json
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from bpbroker.config import schema
from bpbroker.errors import ConfigurationError, StorageFull, Unavailable

if TYPE_CHECKING:
    import requests
    from etcd3gw.client import Etcd3Client

logger = logging.getLogger(__name__)

_CONNECT_SECS: Final = 1.0
_ATTEMPT_SECS: Final = 1.5
"""How long one endpoint may think before the next one is asked; at least, and at most the rest of the time."""
_PAUSE_SECS: Final = 0.1
"""Between two rounds over all endpoints."""
SILENT_SECS: Final = 10.0
"""A watch that hears nothing for so long is begun anew: nobody tells us that a link is cut."""

# gRPC's status codes, as the gateway puts them into an error's body.
_INVALID_ARGUMENT, _NOT_PERMITTED, _EXHAUSTED, _OUT_OF_RANGE, _UNAUTHENTICATED = 3, 7, 8, 11, 16


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """How the cluster is reached: the section ``_registry`` of the configuration."""

    endpoints: tuple[str, ...]
    """Such as ``https://10.0.0.5:2379``."""
    prefix: str
    """Every key begins with it and a slash."""
    ca_cert: str | None = None
    client_cert: str | None = None
    client_key: str | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    timeout_secs: float = 5.0

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> EtcdOptions:
        """Give what the settings say."""

        def option(key: str) -> Any:
            return schema.option(settings, "_registry", key)

        return cls(
            tuple(option("endpoints")), option("prefix"), option("ca_cert"), option("client_cert"),
            option("client_key"), option("user"), option("password"), option("timeout_secs"),
        )  # fmt: skip


AWAY: Final = "The registry's etcd cluster does not answer"


class Unreachable(Unavailable):
    """No endpoint answered as it should; ``outcome_known`` is False when one may have got the request."""


class Compacted(Unavailable):
    """The cluster has forgotten the versions that were asked for."""


class _Refused(Exception):
    """One endpoint's answer that another one would give as well."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.text = text


class _Failed(Exception):
    """One endpoint did not answer as it should; another one may."""

    def __init__(self, why: str, *, sent: bool, refused: bool = False) -> None:
        super().__init__(why)
        self.sent = sent
        """Whether the endpoint may have got the request."""
        self.refused = refused
        """Whether the two do not trust each other: a certificate."""


def encode(key: bytes) -> str:
    """Give bytes as the gateway takes them."""
    return base64.b64encode(key).decode()


def decode(text: str) -> bytes:
    """Give bytes that the gateway gave."""
    return base64.b64decode(text)


class Gateway:
    """One caller's way to the cluster; to be used by one thread at a time, but for :meth:`hang_up`.

    Raises:
        ConfigurationError: the library is not installed, or a certificate cannot be read.
    """

    def __init__(self, options: EtcdOptions) -> None:
        self._options = options
        self._clients = [_client(endpoint, options) for endpoint in options.endpoints]
        self._current = 0
        self._stream: requests.Response | None = None
        self._closed = False
        self._told: set[str] = set()
        """What went wrong and was logged, until something goes right again."""

    @property
    def endpoint(self) -> str:
        """The endpoint that answered last."""
        return self._options.endpoints[self._current]

    def call(self, path: str, body: Mapping[str, Any], timeout_secs: float | None = None) -> dict[str, Any]:
        """Send a request that may be sent twice, to one endpoint after the other until one answers.

        Raises:
            Unreachable: none did within the time.
            Compacted: it asks for versions that are gone.
            StorageFull: the cluster takes no more data.
            ConfigurationError: the cluster refuses us.
        """
        limit = self._options.timeout_secs if timeout_secs is None else timeout_secs
        deadline = time.monotonic() + limit
        tried, sent, distrusting = 0, False, set[int]()
        while True:
            remaining = deadline - time.monotonic()
            try:
                answer = self._attempt(path, body, max(0.05, min(remaining, max(_ATTEMPT_SECS, limit / 3))))
            except _Refused as refusal:
                raise _meaning(refusal, sent=sent) from None
            except _Failed as failure:
                sent = sent or failure.sent
                if failure.refused:  # it may show only at the second try: TLS 1.3 refuses late
                    distrusting.add(self._current)
                self._tell(failure)
                tried += 1
                self._current = (self._current + 1) % len(self._clients)
            else:
                self._told.clear()
                return answer
            if len(distrusting) == len(self._clients):
                raise ConfigurationError("The registry's etcd cluster cannot be used: its certificate or ours is wrong")
            if tried % len(self._clients) == 0:
                time.sleep(min(_PAUSE_SECS, max(0.0, deadline - time.monotonic())))
            if time.monotonic() >= deadline:
                error = Unreachable(AWAY)
                error.outcome_known = not sent
                raise error

    def stream(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Send a request to one endpoint and give the messages of its answer as they come.

        Ends when the endpoint has been silent for a while, for good or ill; the next call tries the next one.

        Raises:
            Unreachable: the endpoint ended it, or :meth:`hang_up` was called.
            ConfigurationError: the cluster refuses us.
        """
        client = self._clients[self._current]
        try:
            self._log_in(client)
            # Without a leader the endpoint shall end the watch instead of staying silent.
            with client.session.post(
                client.get_url(path),
                json=body,
                headers={"Grpc-Metadata-hasleader": "true"},
                stream=True,
                timeout=(_CONNECT_SECS, SILENT_SECS),
            ) as response:
                if response.status_code != 200:
                    raise _Refused(*_error_of(response.text))
                self._stream = response
                yield from _messages(response)
                raise _Failed("it ended the watch", sent=False)
        except _Refused as refusal:
            client.session.headers.pop("Authorization", None)
            self._current = (self._current + 1) % len(self._clients)
            raise _meaning(refusal, sent=False) from None
        except (OSError, ValueError, _Failed) as error:  # what requests raises is an OSError, too
            if self._stream is not None and "Read timed out" in str(error):
                self._current = (self._current + 1) % len(self._clients)
                return
            self._tell(_Failed(_reason(error), sent=False))
            self._current = (self._current + 1) % len(self._clients)
            raise Unreachable("The registry's etcd cluster ended the watch") from None
        finally:
            self._stream = None

    def hang_up(self) -> None:
        """Make a :meth:`stream` in another thread end now."""
        stream = self._stream
        if stream is not None:
            # A second handle of the socket: the first one stays its owner's.
            with (
                suppress(OSError, ValueError),
                socket.fromfd(stream.raw.fileno(), socket.AF_INET, socket.SOCK_STREAM) as sock,
            ):
                sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of all connections."""
        self._closed = True
        self.hang_up()
        for client in self._clients:
            client.session.close()

    def _attempt(self, path: str, body: Mapping[str, Any], secs: float) -> dict[str, Any]:
        client = self._clients[self._current]
        client.timeout = secs
        for last in (False, True):
            self._log_in(client)
            try:
                return _post(client, path, body)
            except _Refused as refusal:
                # A token lives for five minutes without use, and not longer than the member's memory.
                client.session.headers.pop("Authorization", None)
                stale = refusal.code == _UNAUTHENTICATED or ("auth" in refusal.text and "revision" in refusal.text)
                if last or not stale or self._options.user is None:
                    raise
        raise AssertionError("the last round returns or raises")

    def _log_in(self, client: Etcd3Client) -> None:
        if self._options.user is None or "Authorization" in client.session.headers:
            return
        client.timeout = _ATTEMPT_SECS if client.timeout is None else client.timeout
        answer = _post(client, "/auth/authenticate", {"name": self._options.user, "password": self._options.password})
        client.session.headers["Authorization"] = str(answer["token"])

    def _tell(self, failure: _Failed) -> None:
        """Log once what is wrong with an endpoint: clients must not see addresses, operators must."""
        text = f"etcd at {self.endpoint}: {failure}"
        if text not in self._told and not self._closed:
            self._told.add(text)
            logger.warning("%s", text)


def _client(endpoint: str, options: EtcdOptions) -> Etcd3Client:
    try:
        from etcd3gw.client import Etcd3Client
    except ImportError:
        raise ConfigurationError(
            "_registry.store is etcd, but its client is not installed: pip install 'bpbroker[etcd]'"
        ) from None
    from bpbroker.storage.etcd.session import EtcdSession

    for path in (options.ca_cert, options.client_cert, options.client_key):
        if path is not None:
            try:
                with open(path, "rb"):  # noqa: PTH123 - only to see that it can be read
                    pass
            except OSError as error:
                raise ConfigurationError(f"_registry: cannot read {path}: {error.strerror}") from None
    session = EtcdSession()
    session.trust_env = False  # a proxy, or a password in ~/.netrc, is not meant for the cluster
    if options.ca_cert is not None:
        session.verify = options.ca_cert
    if options.client_cert is not None and options.client_key is not None:
        session.cert = (options.client_cert, options.client_key)
    parts = urlsplit(endpoint)
    return Etcd3Client(parts.hostname or "", parts.port or 2379, parts.scheme, session=session, api_path="/v3/")


def _post(client: Etcd3Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """Send one request to one endpoint.

    Raises:
        _Refused, _Failed: it did not do what it was asked.
    """
    from etcd3gw import exceptions

    try:
        answer: dict[str, Any] = client.post(client.get_url(path), json=body)
    except (exceptions.ConnectionFailedError, exceptions.ConnectionTimeoutError) as error:
        if error.__context__ is None:  # an answer: 503, 408, 504
            raise _Failed(_error_of(str(error.detail_text))[1], sent=True) from None
        cause = error.__context__
        raise _Failed(_reason(cause), sent=_was_sent(cause), refused=_is_distrust(cause)) from None
    except exceptions.Etcd3Exception as error:
        code, text = _error_of(str(error.detail_text))
        if code in (_INVALID_ARGUMENT, _NOT_PERMITTED, _OUT_OF_RANGE, _UNAUTHENTICATED) or "space" in text:
            raise _Refused(code, text) from None
        raise _Failed(text, sent=True) from None
    except (OSError, ValueError) as error:  # it broke off within the answer, or answered no JSON
        raise _Failed(_reason(error), sent=True) from None
    return answer


def _error_of(text: str) -> tuple[int, str]:
    """Give gRPC's code and message from an error's body; code 0 when it has none."""
    with suppress(ValueError, TypeError, AttributeError):
        found = json.loads(text)
        return int(found.get("code", 0)), str(found.get("message") or found.get("error"))
    return 0, "it answers something else than etcd does"


def _meaning(refusal: _Refused, *, sent: bool) -> Unavailable | ConfigurationError:
    """Give the error that a refusal by the whole cluster means."""
    if refusal.code == _OUT_OF_RANGE:
        return Compacted("The registry's etcd cluster has forgotten these versions")
    if "space" in refusal.text:
        error = StorageFull("The etcd cluster's space is used up: nothing was changed")
        error.outcome_known = not sent
        return error
    logger.error("etcd refuses: %s", refusal.text)
    return ConfigurationError(f"The registry's etcd cluster refuses: {refusal.text}")


def _reason(error: BaseException | None) -> str:
    """Say in a few words why a connection failed: without addresses, which stand in the log before it, or secrets."""
    text = str(error)
    for words, meaning in _REASONS:
        if any(word in text for word in words):
            return meaning
    return f"the connection failed ({type(error).__name__})" if not isinstance(error, _Failed) else text


_CERTIFICATE_REASONS: Final = (
    (("CERTIFICATE_VERIFY_FAILED", "certificate verify failed"), "its certificate cannot be verified"),
    (("doesn't match", "mismatch"), "its certificate is for another name"),
    (("CERTIFICATE_REQUIRED", "BAD_CERTIFICATE", "UNKNOWN_CA", "bad certificate"), "it refuses our certificate"),
)
_REASONS: Final = (
    *_CERTIFICATE_REASONS,
    (("Connection refused", "ECONNREFUSED"), "nothing listens there"),
    (("No route", "unreachable"), "there is no way to it"),
    (("timed out", "Timeout"), "it does not answer"),
    (("Connection aborted", "Connection broken", "IncompleteRead", "EOF occurred", "reset by peer"), "it broke off"),
    (("Name or service", "getaddrinfo", "resolve"), "its name is not known"),
)


def _is_distrust(error: BaseException | None) -> bool:
    """Whether one of the two does not accept the other's certificate."""
    return _reason(error) in {meaning for _, meaning in _CERTIFICATE_REASONS}


def _was_sent(error: BaseException) -> bool:
    """Whether a request that failed this way may have reached the endpoint."""
    import requests

    if isinstance(error, requests.exceptions.ConnectTimeout) or _is_distrust(error):
        return False
    return "NewConnectionError" not in repr(error.args)


def _messages(response: requests.Response) -> Iterator[dict[str, Any]]:
    """Give the JSON objects of a stream, a line each; its pieces end anywhere."""
    rest = b""
    for piece in response.iter_content(chunk_size=None):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)
