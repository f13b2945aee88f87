"""The API's description in OpenAPI 3.1, served at ``/openapi.json``."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

from bpbroker import __version__
from bpbroker.frontend.actions import BUILT_IN
from bpbroker.registry import entry_values


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


_NAME = _text(
    "The entry's name, at most 256 bytes",
    minLength=1,
    maxLength=256,
    pattern=r"^[^_\s\u0000-\u001f\u007f](?:[^\u0000-\u001f\u007f]*[^\s\u0000-\u001f\u007f])?$",
)
_DATA = {
    "description": "An object, or text that is a JSON object, is the entry; anything else is kept as text in _str",
}
_WAIT = {"type": "number", "minimum": 0, "maximum": 600, "description": "Seconds to wait for it"}
_COUNT = {"type": "integer", "minimum": 0, "description": "How many entries to wait for"}
_SESSION = _text("Id of a session, made by the client", minLength=1, maxLength=128, pattern="^[A-Za-z0-9._:@+-]+$")
_OF_SESSION = _text(
    "Id of the session with which the entry ends; empty: with none", maxLength=128, pattern="^[A-Za-z0-9._:@+-]*$"
)
_WORD = _text("Who asks, such as a machine's id", minLength=1, maxLength=256)
_NUMBER = {"type": "integer", "minimum": 0, "maximum": 2**53 - 1}
_FILTER = {"type": "array", "items": {"type": "string"}, "description": "FIELD=VALUE that an entry must have"}
_FAILING = {**_FILTER, "description": "FIELD=VALUE: an entry that has one has failed; it is shown, and ends a wait"}
_UNSET = {
    "type": "array",
    "maxItems": entry_values.UNSET_MAX,
    "items": {"type": "string", "minLength": 1, "maxLength": entry_values.UNSET_PATH_MAX},
    "description": "Keys to remove first, or paths such as a.b; then data may be left out",
}
_LOCK = _text("NAME:TOKEN of a lock that must be held", pattern="^.+:[0-9]{1,16}$")
_CONSISTENCY = _text("local: what this broker knows is enough, with its age", enum=["strong", "local"])

_PARAMETERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "Register": ({"name": _NAME, "data": _DATA, "session": _OF_SESSION, "lock": _LOCK}, ["name", "data"]),
    "Replace": ({"name": _NAME, "data": _DATA, "session": _OF_SESSION, "lock": _LOCK}, ["name", "data"]),
    "Update": ({"name": _NAME, "data": _DATA, "unset": _UNSET, "session": _OF_SESSION, "lock": _LOCK}, ["name"]),
    "Delete": ({"name": _NAME, "lock": _LOCK}, ["name"]),
    "Get": ({"name": _NAME, "wait": _WAIT, "consistency": _CONSISTENCY}, ["name"]),
    "List": (
        {
            "prefix": _text("Only names that begin with this"),
            "wait": _WAIT,
            "count": _COUNT,
            "consistency": _CONSISTENCY,
            "where": _FILTER,
            "fail_where": _FAILING,
            "lost": _text("1: what ended with its session lately, instead", enum=["0", "1"]),
        },
        [],
    ),
    "Ping": ({"data": {"description": "It is echoed"}}, []),
    "Open": ({"session": _SESSION, "ttl": {"type": "number", "minimum": 2, "maximum": 86400}}, ["session", "ttl"]),
    "Renew": ({"session": _SESSION}, ["session"]),
    "Close": ({"session": _SESSION}, ["session"]),
    "Lock": (
        {
            "name": _NAME,
            "session": _SESSION,
            "wait": _WAIT,
            "limit": {"type": "integer", "minimum": 1, "default": 1, "description": "How many may hold it"},
            "data": {"description": "Data about the holder that others see: JSON, or text; at most 4096 bytes"},
        },
        ["name", "session"],
    ),
    "Unlock": ({"name": _NAME, "session": _SESSION}, ["name", "session"]),
    "Holder": ({"name": _NAME, "wait": _WAIT, "changed_from": {"type": "integer", "minimum": 0}}, ["name"]),
    "Allocate": (
        {
            "pool": _NAME,
            "owner": _WORD,
            "from": {**_NUMBER, "default": 1},
            "to": {**_NUMBER, "default": 255},
            "number": _NUMBER,
            "lock": _LOCK,
        },
        ["pool", "owner"],
    ),
    "Release": ({"pool": _NAME, "owner": _WORD, "quarantine": _NUMBER, "lock": _LOCK}, ["pool", "owner"]),
    "Next": ({"name": _NAME, "by": {"type": "integer", "default": 1}, "owner": _WORD, "lock": _LOCK}, ["name"]),
    "Take": ({"name": _NAME, "receiver": _WORD, "lock": _LOCK}, ["name", "receiver"]),
    "Ack": ({"name": _NAME, "receiver": _WORD, "lock": _LOCK}, ["name", "receiver"]),
    "Batch": (
        {
            "id": _text("Made by the client: a batch that is sent again is not carried out again", maxLength=256),
            "operations": {"type": "array", "minItems": 1, "maxItems": 100, "items": {"type": "object"}},
            "atomic": {"type": "boolean", "description": "All or none (the default), or each by itself"},
        },
        ["operations"],
    ),
    "Watch": (
        {
            "prefix": _text("Only names that begin with this"),
            "name": _NAME,
            "since": _text("A cursor; without one the present cursor is answered at once"),
            "wait": _WAIT,
            "limit": {"type": "integer", "minimum": 1, "description": "How many events, about"},
        },
        [],
    ),
}

_ANSWERS = {
    "200": "Success", "304": "Unchanged", "400": "Bad request", "401": "Wrong or missing key, or no such method",
    "403": "A web page of another origin or site", "404": "No such entry", "405": "Another HTTP method is needed",
    "409": "It is taken already",
    "410": "The cursor is forgotten", "412": "The precondition failed", "413": "Too large",
    "421": "A browser, by a name that is not this broker's",
    "429": "Too many wrong keys", "503": "Overloaded, or storage failed", "504": "Timed out",
}  # fmt: skip


@cache
def description() -> dict[str, Any]:
    """Return the description as a JSON object."""
    result = {
        "type": "object",
        "required": ["success", "message"],
        "properties": {
            "success": {"type": "boolean"},
            "message": {"type": "string"},
            "data": {"type": "object"},
            "revision": {
                "type": "integer",
                "description": "Of the change, or of the newest one that is shown; 0: of none",
            },
            "age_secs": {"type": "number", "description": "With consistency=local: how old the data may be"},
        },
    }
    pong = {"type": "object", "properties": {"src": {"type": "string"}, "data": {"type": "object"}}}
    paths: dict[str, Any] = {}
    for namespace, actions in BUILT_IN.items():
        for method, action in actions.items():
            properties, required = _PARAMETERS[method]
            body = {"type": "object", "properties": properties, "required": required}
            responses = {
                status: {
                    "description": text,
                    **_content(pong if (namespace, status) == ("ping", "200") else result, status),
                }
                for status, text in _ANSWERS.items()
            }
            post = {
                "operationId": f"{namespace}{method}",
                "requestBody": {"required": bool(required), "content": {"application/json": {"schema": body}}},
                "responses": responses,
            }
            query = [
                {"name": name, "in": "query", "required": name in required, "schema": schema}
                for name, schema in properties.items()
            ]
            others = {
                verb.lower(): {
                    "operationId": f"{namespace}{method}By{verb.title()}",
                    "parameters": query,
                    "responses": responses,
                }
                for verb in action.allow
                if verb != "POST"
            }
            paths[f"/{namespace}/{method}/"] = {"post": post, **others}
    paths["/metrics"] = {"get": _metrics(result)}
    return {
        "openapi": "3.1.0",
        "info": {"title": "bpbroker", "version": __version__},
        "components": {"securitySchemes": {"accessKey": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"accessKey": []}],
        "paths": paths,
    }


def _metrics(error: dict[str, Any]) -> dict[str, Any]:
    """Return the paths that are no calls of a method and still need a key."""
    text = {"schema": {"type": "string"}}
    responses: dict[str, Any] = {
        "200": {
            "description": "Metrics of the broker, in the format that Accept asks for",
            "content": {"text/plain": text, "application/openmetrics-text": text},
        },
    }
    for status in ("401", "403", "404", "405", "421", "429", "503"):
        responses[status] = {"description": _ANSWERS[status], **_content(error, status)}
    responses["404"]["description"] = "This broker shows none (api.metrics)"
    return {"operationId": "metrics", "responses": responses}


def _content(schema: dict[str, Any], status: str) -> dict[str, Any]:
    return {} if status == "304" else {"content": {"application/json": {"schema": schema}}}


@cache
def document() -> bytes:
    """Return the description as JSON. It is made once, because it has 190 KB and needs no key."""
    return json.dumps(description()).encode()
