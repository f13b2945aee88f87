"""The registry over HTTPS against a dict, with whatever hypothesis thinks of."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from http.client import HTTPSConnection
from typing import Any, ClassVar
from urllib.parse import urlencode

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from bpbroker.discovery.interfaces import own_address
from tests.support.running import RunningBroker
from tests.support.witness import FORM, LONG

STAMP = ("last_write_ip", "last_write_ts")
RESERVED = (*STAMP, "last_write_revision", "last_write_index", "last_write_session")
EFFORT = settings(
    max_examples=400 if LONG else 40,
    stateful_step_count=60 if LONG else 30,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)

# Everything but lone surrogates: those are refused (see test_bad_input.py).
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
names = st.sampled_from(
    ["a", "b", "A", "a/b", "a%2Fb", "a b", "a&b=c+d", '"', "-", "\U0001f389", "\u00e9", "e\u0301", "x" * 256]
)
scalars = (
    st.none() | st.booleans() | st.integers(-(10**40), 10**40) | st.floats(allow_nan=False, allow_infinity=False) | text
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=8
)
objects = st.dictionaries(text.filter(lambda key: key not in RESERVED) | st.sampled_from("kl"), values, max_size=4)
no_objects = text.map(lambda said: f"t{said}") | (scalars | st.lists(values, max_size=3)).map(json.dumps)


def canonical(value: Any) -> str:
    """Return a value so that 1, 1.0 and true differ."""
    return json.dumps(value, sort_keys=True)


def merged(old: Any, new: Any) -> Any:
    """Merge at every depth; written apart from the broker's own."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {**old, **{key: merged(old[key], value) if key in old else value for key, value in new.items()}}


class Registry(RuleBasedStateMachine):
    """A client of one broker, and what it must find there."""

    connection: ClassVar[HTTPSConnection]

    @initialize()
    def empty(self) -> None:
        self.model: dict[str, dict[str, Any]] = {}
        self.tags: dict[str, str] = {}
        for name in self.ask("List", {})[1]["data"]:
            assert self.ask("Delete", {"name": name})[0] == 200

    def ask(
        self, method: str, parameters: Mapping[str, Any], way: str = "json", headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any]:
        """Call a method with parameters in JSON, a form, or the query; give status and document."""
        path = f"/services/{method}/"
        body, kind = "", {}
        if way == "json":
            body, kind = json.dumps(parameters), {"Content-Type": "application/json"}
        elif way == "form":
            body, kind = urlencode(parameters), FORM
        else:
            path = f"{path}?{urlencode(parameters)}"
        self.connection.request("POST", path, body, {**kind, **(headers or {})})
        response = self.connection.getresponse()
        document = json.loads(response.read() or b"null")
        self.tag = response.getheader("ETag")
        assert response.status < 500
        assert document is None or document["success"] is (response.status == 200)
        return response.status, document

    def holds(self, name: str, document: Any) -> None:
        """See that an answer is the entry in the model, stamped; take its tag down."""
        data = document["data"]
        assert list(data)[-2:] == list(STAMP)
        assert data.pop(STAMP[0]) == (own_address() or "127.0.0.1")
        assert isinstance(data.pop(STAMP[1]), int)
        assert canonical(data) == canonical(self.model[name])
        assert self.tag is not None
        self.tags[name] = self.tag

    def write(self, method: str, name: str, own: dict[str, Any], sent: Any, way: str) -> None:
        status, document = self.ask(method, {"name": name, "data": sent}, way)
        if method == "Register" and name in self.model:
            assert (status, document["message"]) == (409, f"Entry '{name}' already exists")
            return
        assert status == 200, document
        self.model[name] = merged(self.model[name], own) if method == "Update" and name in self.model else own
        self.holds(name, document)

    methods = st.sampled_from(["Register", "Replace", "Update"])

    @rule(method=methods, name=names, data=objects)
    def write_object(self, method: str, name: str, data: dict[str, Any]) -> None:
        self.write(method, name, data, data, "json")

    @rule(method=methods, name=names, data=objects, way=st.sampled_from(["json", "form", "query"]))
    def write_object_as_text(self, method: str, name: str, data: dict[str, Any], way: str) -> None:
        self.write(method, name, data, json.dumps(data), way)

    @rule(method=methods, name=names, data=no_objects, way=st.sampled_from(["json", "form", "query"]))
    def write_text(self, method: str, name: str, data: str, way: str) -> None:
        self.write(method, name, {"_str": data}, data, way)

    @rule(method=methods, name=names, reserved=st.sampled_from(RESERVED), data=objects)
    def write_what_is_refused(self, method: str, name: str, reserved: str, data: dict[str, Any]) -> None:
        status, document = self.ask(method, {"name": name, "data": {**data, reserved: "x"}})
        assert (status, document["message"]) == (400, f"Used reserved data name {reserved}")

    @rule(name=names, data=objects, stale=st.booleans())
    def write_if_unchanged(self, name: str, data: dict[str, Any], stale: bool) -> None:
        tag = '"stale"' if stale else self.tags.get(name, '"none"')
        status, document = self.ask("Replace", {"name": name, "data": data}, headers={"If-Match": tag})
        if stale or name not in self.model:
            assert status == 412
            return
        assert status == 200, document
        self.model[name] = data
        self.holds(name, document)

    @rule(name=names, data=objects)
    def write_if_absent(self, name: str, data: dict[str, Any]) -> None:
        status, document = self.ask("Update", {"name": name, "data": data}, headers={"If-None-Match": "*"})
        if name in self.model:
            assert status == 412
            return
        assert status == 200, document
        self.model[name] = data
        self.holds(name, document)

    @rule(name=names)
    def delete(self, name: str) -> None:
        status, answer = self.ask("Delete", {"name": name})
        answer.pop("revision", None)
        assert (status, answer) == (200, {"success": True, "message": "Success"})
        self.model.pop(name, None)
        self.tags.pop(name, None)

    @rule(name=names, way=st.sampled_from(["json", "form", "query"]))
    def get(self, name: str, way: str) -> None:
        status, document = self.ask("Get", {"name": name}, way)
        if name in self.model:
            assert status == 200
            known = self.tags[name]
            self.holds(name, document)
            assert self.tags[name] == known
        else:
            assert status == 404
            assert document == {"success": False, "message": f"Entry '{name}' not found", "data": {}}

    @rule(name=names)
    def get_if_changed(self, name: str) -> None:
        tag = self.tags.get(name, '"none"')
        assert self.ask("Get", {"name": name}, headers={"If-None-Match": tag})[0] == (
            304 if name in self.model else 404
        )

    @rule(prefix=st.sampled_from(["", "a", "a/", "x", "e", "\u00e9", "nothing"]))
    def list(self, prefix: str) -> None:
        status, document = self.ask("List", {"prefix": prefix})
        assert status == 200
        found = document["data"]
        assert sorted(found) == sorted(name for name in self.model if name.startswith(prefix))
        for name, data in found.items():
            own = {key: value for key, value in data.items() if key not in STAMP}
            assert canonical(own) == canonical(self.model[name])


def test_the_registry_is_a_dict(broker: RunningBroker) -> None:
    with closing(broker.connect()) as connection:
        Registry.connection = connection
        run_state_machine_as_test(Registry, settings=EFFORT)
    assert "Traceback" not in broker.text
