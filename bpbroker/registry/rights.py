"""What an access key may do: its rules, parsed, matched and explained. Pure.

A rule is one of::

    NAMESPACE               every method of a namespace: ``ping``
    NAMESPACE.*             the same
    NAMESPACE.METHOD        one method: ``ossec.AddAgent``
    services:VERBS          methods of the registry, in lower case, on every name: ``services:get,list``
    services:VERBS@PREFIX   the same on names with this prefix: ``services:*@foo/``

A namespace may have dots in it; what is behind the last one is the method. A call that no rule allows is refused.
Rules only allow: a further rule takes nothing away.

What a call does is a :class:`Need`. A name and a prefix are matched in the same way: a key for all names that begin
with ``foo/`` may read ``foo/bar`` and list ``foo/b``, but may not list ``fo``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from bpbroker.errors import BadRequest
from bpbroker.registry import entry_values

REGISTRY: Final = "services"
"""The one namespace whose rules may have verbs and a prefix."""

VERBS: Final = (
    "register", "replace", "update", "delete", "get", "list", "watch", "take", "ack",
    "open", "renew", "close", "lock", "unlock", "holder", "allocate", "release", "next",
)  # fmt: skip
"""The registry's methods in lower case. A batch needs the verb of each of its operations."""

RULES_MAX: Final = 64
PREFIX_MAX_BYTES: Final = 4096
"""The longest prefix: the longest name that a broker can be configured for."""

_RULE_MAX: Final = 5000
_NO_NAMESPACES: Final = ("api", "worker")
_ALL: Final = "*"
_WORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\Z")
_METHOD: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}\Z")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class BadRule(BadRequest):
    """A rule cannot be used; the message has the rule and the column."""


class Need(NamedTuple):
    """What a call does, for which a key needs the right."""

    namespace: str
    method: str
    """As it is called, such as ``Get``; for the registry in lower case as well."""
    text: str | None = None
    """The name, or the prefix of names, that the call is about; None if it is about no names."""


class Rule(NamedTuple):
    """One rule."""

    namespace: str
    methods: frozenset[str]
    """Lower-case verbs for the registry, names of methods for others; ``*`` among them is every method."""
    prefix: str = ""

    def allows(self, need: Need) -> bool:
        """Whether this rule allows a need."""
        return (
            need.namespace == self.namespace
            and (_ALL in self.methods or _called(need) in self.methods)
            and (need.text is None or need.text.startswith(self.prefix))
        )

    def __str__(self) -> str:
        if self.namespace == REGISTRY:
            verbs = ",".join(sorted(self.methods))
            return f"{REGISTRY}:{verbs}" + (f"@{self.prefix}" if self.prefix else "")
        return f"{self.namespace}.{','.join(self.methods)}"


class Rights:
    """The union of some rules."""

    __slots__ = ("_by_namespace", "rules")

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = tuple(rules)
        by_namespace: dict[str, tuple[Rule, ...]] = {}
        for rule in self.rules:
            by_namespace[rule.namespace] = (*by_namespace.get(rule.namespace, ()), rule)
        self._by_namespace = by_namespace

    @property
    def namespaces(self) -> frozenset[str]:
        """The namespaces that the rules are about."""
        return frozenset(self._by_namespace)

    def allows(self, need: Need) -> bool:
        """Whether one of the rules allows this."""
        return any(rule.allows(need) for rule in self._by_namespace.get(need.namespace, ()))

    def missing(self, needs: Iterable[Need]) -> Need | None:
        """Return the first need that no rule allows; None if all are allowed."""
        return next((need for need in needs if not self.allows(need)), None)

    def whole(self) -> frozenset[str]:
        """Return the namespaces in which everything is allowed."""
        return frozenset(
            namespace
            for namespace, rules in self._by_namespace.items()
            if any(_ALL in rule.methods and not rule.prefix for rule in rules)
        )


def explain(need: Need) -> str:
    """Return the narrowest rule that would allow this, as it is written."""
    if need.namespace != REGISTRY:
        return f"{need.namespace}.{need.method}"
    return f"{REGISTRY}:{_called(need)}" + (f"@{need.text}" if need.text else "")


def parse(texts: Sequence[str]) -> Rights:
    """Return the rights that a list of rules gives.

    Raises:
        BadRule: there is none, there are too many, or one of them cannot be read.
    """
    if not texts:
        raise BadRule("A key needs at least one rule, such as services:get@foo/")
    if len(texts) > RULES_MAX:
        raise BadRule(f"A key takes at most {RULES_MAX} rules")
    return Rights(map(parse_rule, texts))


def parse_rule(text: str) -> Rule:
    """Read one rule.

    Raises:
        BadRule: it cannot be read; the message has the column, which counts from 1.
    """
    if len(text) > _RULE_MAX:
        raise BadRule(f"A rule is longer than {_RULE_MAX} characters")
    if not text:
        raise BadRule("A rule is empty")
    namespace, colon, rest = text.partition(":")
    if colon:
        return _registry_rule(text, namespace, rest)
    if "@" in text:
        raise _fault(text, text.index("@"), f"a prefix goes with verbs, such as {REGISTRY}:get@foo/")
    namespace, dot, method = text.rpartition(".")
    if not dot:
        namespace, method = text, _ALL
    _check_namespace(text, namespace)
    at = len(namespace) + 1
    if method != _ALL and not _METHOD.match(method):
        raise _fault(text, at, "a method's name must be here, or *")
    if namespace != REGISTRY or method == _ALL:
        return Rule(namespace, frozenset({method}))
    verb = method.lower()
    if method == "Batch":
        raise _fault(text, at, "a batch needs the verbs of its operations, none of its own")
    if method != method[:1].upper() + method[1:].lower() or verb not in VERBS:
        raise _fault(text, at, f"{REGISTRY} has no method {method!r}" + _meant(verb.title(), map(str.title, VERBS)))
    return Rule(namespace, frozenset({verb}))


def _registry_rule(text: str, namespace: str, rest: str) -> Rule:
    """Read a rule with verbs."""
    if namespace != REGISTRY:
        raise _fault(text, 0, f"only {REGISTRY} has verbs; for another namespace write NAMESPACE.METHOD")
    listed, mark, prefix = rest.partition("@")
    at = len(namespace) + 1
    verbs = listed.split(",")
    for verb in verbs:
        if verb == "batch":
            raise _fault(text, at, "a batch needs the verbs of its operations, none of its own")
        if verb != _ALL and verb not in VERBS:
            what = f"{verb[:40]!r} is no verb" + _meant(verb, VERBS) if verb else "there must be a verb here, or *"
            raise _fault(text, at, what)
        at += len(verb) + 1
    if mark:
        _check_prefix(text, at, prefix)
    return Rule(namespace, frozenset({_ALL}) if _ALL in verbs else frozenset(verbs), prefix)


def _check_namespace(text: str, namespace: str) -> None:
    at = 0
    for word in namespace.split("."):
        if not _WORD.match(word):
            what = (
                "names that begin with _ are the broker's own" if word.startswith("_") else "a namespace must be here"
            )
            raise _fault(text, at, what)
        at += len(word) + 1
    if namespace in _NO_NAMESPACES:
        raise _fault(text, 0, f"{namespace} is no namespace that clients can call")


def _check_prefix(text: str, at: int, prefix: str) -> None:
    if not prefix:
        raise _fault(text, at, "there must be a prefix behind @; without one leave it out")
    if prefix.startswith("_"):
        raise _fault(text, at, "names that begin with _ are the broker's own")
    if prefix in entry_values.RESERVED_NAMES:
        raise _fault(text, at, f"{prefix!r} cannot be a name")
    control = _CONTROL.search(prefix)
    if control:
        raise _fault(text, at + control.start(), "a prefix has no control characters")
    if prefix[0].isspace():
        raise _fault(text, at, "no name begins with white space")
    try:
        size = len(prefix.encode())
    except UnicodeEncodeError:
        raise _fault(text, at, "the prefix is not valid UTF-8") from None
    if size > PREFIX_MAX_BYTES:
        raise _fault(text, at, f"the prefix is longer than {PREFIX_MAX_BYTES} bytes")


def _called(need: Need) -> str:
    return need.method.lower() if need.namespace == REGISTRY else need.method


def _fault(text: str, at: int, what: str) -> BadRule:
    shown = text if len(text) <= 80 else f"{text[:77]}..."
    return BadRule(f"The rule {shown!r} cannot be used: column {at + 1}: {what}")


def _meant(word: str, words: Iterable[str]) -> str:
    """Say which of the words may be meant; all of them if none is close."""
    all_words = tuple(words)
    close = difflib.get_close_matches(word, all_words, 1)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(all_words)}"
