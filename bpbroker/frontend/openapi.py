"""The API's description in OpenAPI 3.1, served at ``/openapi.json``."""

from __future__ import annotations

from functools import cache
from typing import Any

from bpbroker import __version__
from bpbroker.frontend.actions import BUILT_IN


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
_CONSISTENCY = _text("local: what this broker knows is enough, with its age", enum=["strong", "local"])

_PARAMETERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "Register": ({"name": _NAME, "data": _DATA}, ["name", "data"]),
    "Replace": ({"name": _NAME, "data": _DATA}, ["name", "data"]),
    "Update": ({"name": _NAME, "data": _DATA}, ["name", "data"]),
    "Delete": ({"name": _NAME}, ["name"]),
    "Get": ({"name": _NAME, "wait": _WAIT, "consistency": _CONSISTENCY}, ["name"]),
    "List": (
        {"prefix": _text("Only names that begin so"), "wait": _WAIT, "count": _COUNT, "consistency": _CONSISTENCY},
        [],
    ),
    "Ping": ({"data": _DATA}, []),
}

_ANSWERS = {
    "200": "Success", "304": "Unchanged", "400": "Bad request", "401": "Wrong or missing key, or no such method",
    "403": "A web page of another origin or site", "404": "No such entry", "405": "Another HTTP method is needed",
    "409": "The entry exists already", "412": "The precondition failed", "413": "Too large",
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
    return {
        "openapi": "3.1.0",
        "info": {"title": "bpbroker", "version": __version__},
        "components": {"securitySchemes": {"accessKey": {"type": "http", "scheme": "bearer"}}},
        "security": [{}, {"accessKey": []}],
        "paths": paths,
    }


def _content(schema: dict[str, Any], status: str) -> dict[str, Any]:
    return {} if status == "304" else {"content": {"application/json": {"schema": schema}}}
