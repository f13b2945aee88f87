"""Rules of access keys: a table of what each allows, what cannot be read, and laws that hold for all of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpbroker.registry.rights import REGISTRY, RULES_MAX, VERBS, BadRule, Need, Rights, Rule, explain, parse, parse_rule

ALLOWED = "yes"
REFUSED = "no"

TABLE = """
# rules                             | namespace method    text     | allowed
services                            | services  Get       foo      | yes
services                            | services  Register  foo      | yes
services                            | services  List      ""       | yes
services                            | services  Open      -        | yes
services                            | ping      Ping      -        | no
services                            | service   Get       foo      | no
services                            | services.sub Get    -        | no
services.*                          | services  Get       foo      | yes
services.*                          | services  Watch     ""       | yes
services.*                          | ossec     AddAgent  -        | no
services:*                          | services  Delete    x        | yes
services:*                          | services  List      ""       | yes
services:*                          | services  Close     -        | yes
services.Get                        | services  Get       anything | yes
services.Get                        | services  List      any      | no
services.Get                        | services  Register  anything | no
services:get                        | services  Get       foo      | yes
services:get                        | services  get       foo      | yes
services:get                        | services  Getx      foo      | no
services:get                        | services  List      foo      | no
services:get                        | services  Watch     foo      | no
services:get                        | ping      get       foo      | no
services:get,list                   | services  List      ""       | yes
services:get,list                   | services  Delete    foo      | no
services:get,get                    | services  Get       foo      | yes
services:*,get@foo/                 | services  Delete    foo/x    | yes
services:get@foo/                   | services  Get       foo/bar  | yes
services:get@foo/                   | services  Get       foo/     | yes
services:get@foo/                   | services  Get       foo      | no
services:get@foo/                   | services  Get       fo       | no
services:get@foo/                   | services  Get       Foo/bar  | no
services:get@foo/                   | services  Get       xfoo/bar | no
services:get@foo/                   | services  Get       ""       | no
services:get@foo/                   | services  Get       _foo/    | no
services:list@foo/                  | services  List      foo/     | yes
services:list@foo/                  | services  List      foo/b    | yes
services:list@foo/                  | services  List      foo      | no
services:list@foo/                  | services  List      fo       | no
services:list@foo/                  | services  List      ""       | no
services:list@foo/                  | services  List      bar/     | no
services:list@foo/                  | services  Get       foo/bar  | no
services:watch@foo/                 | services  Watch     foo/x    | yes
services:watch@foo/                 | services  Watch     foo      | no
services:watch@foo/                 | services  Watch     ""       | no
services:watch@foo/                 | services  List      foo/x    | no
services:*@foo/                     | services  Register  foo/a    | yes
services:*@foo/                     | services  Delete    foo/a    | yes
services:*@foo/                     | services  Lock      foo/db   | yes
services:*@foo/                     | services  Lock      db       | no
services:*@foo/                     | services  Allocate  foo/id   | yes
services:*@foo/                     | services  Allocate  id       | no
services:*@foo/                     | services  Register  fob/a    | no
services:*@foo/                     | services  List      ""       | no
services:*@foo/                     | services  Open      -        | yes
services:open,renew@foo/            | services  Open      -        | yes
services:open,renew@foo/            | services  Renew     -        | yes
services:open,renew@foo/            | services  Close     -        | no
services:lock,unlock@foo/           | services  Holder    foo/db   | no
services:take@secret/               | services  Take      secret/a | yes
services:take@secret/               | services  Ack       secret/a | no
services:take@secret/               | services  Get       secret/a | no
services:next@foo/                  | services  Next      foo/n    | yes
services:get@node-                  | services  Get       node-7   | yes
services:get@node-                  | services  Get       node     | no
services:get@a@b                    | services  Get       a@bc     | yes
services:get@a@b                    | services  Get       a        | no
services:get@a:b                    | services  Get       a:b      | yes
services:get@a.b                    | services  Get       a.bc     | yes
services:get@a,b                    | services  Get       a,bc     | yes
services:get@*                      | services  Get       *x       | yes
services:get@*                      | services  Get       foo      | no
services:get@é                      | services  Get       éa       | yes
services:get@é                      | services  Get       e\u0301a | no
services:get@foo services:list@bar  | services  Get       foox     | yes
services:get@foo services:list@bar  | services  List      barx     | yes
services:get@foo services:list@bar  | services  List      foox     | no
services:get@foo services:list@bar  | services  Get       barx     | no
services:get@foo/a services:get@foo/| services  Get       foo/b    | yes
ping                                | ping      Ping      -        | yes
ping                                | ping      Other     -        | yes
ping                                | services  Get       foo      | no
ping                                | ping.sub  Ping      -        | no
ping.Ping                           | ping      Ping      -        | yes
ping.Ping                           | ping      ping      -        | no
ping.*                              | ping      Ping      -        | yes
ossec.AddAgent                      | ossec     AddAgent  -        | yes
ossec.AddAgent                      | ossec     AddAgents -        | no
ossec.AddAgent                      | ossec     addagent  -        | no
ossec.AddAgent                      | ossec     RemoveAgent -      | no
ossec.AddAgent                      | ossec2    AddAgent  -        | no
ossec.AddAgent                      | pkg.ossec AddAgent  -        | no
ossec.*                             | ossec     Anything  -        | yes
ossec.*                             | ossec.sub Anything  -        | no
pkg.sub.F                           | pkg.sub   F         -        | yes
pkg.sub.F                           | pkg       F         -        | no
pkg.sub.F                           | pkg       sub       -        | no
pkg.sub.*                           | pkg.sub   G         -        | yes
pkg.sub                             | pkg       sub       -        | yes
pkg.sub                             | pkg.sub   F         -        | no
my-pkg.F                            | my-pkg    F         -        | yes
2fa.F                               | 2fa       F         -        | yes
ping ossec.AddAgent services:get    | ossec     AddAgent  -        | yes
ping ossec.AddAgent services:get    | services  Get       x        | yes
ping ossec.AddAgent services:get    | services  Update    x        | no
"""


def rows() -> list[tuple[str, Need, bool]]:
    """Return the table's rows: rules, what is asked for, whether they allow it."""
    found = []
    for line in TABLE.splitlines():
        if not line or line.startswith("#"):
            continue
        rules, need, outcome = (part.strip() for part in line.split("|"))
        namespace, method, text = need.split()
        what = None if text == "-" else "" if text == '""' else text
        found.append((rules, Need(namespace, method, what), {ALLOWED: True, REFUSED: False}[outcome]))
    return found


@pytest.mark.parametrize(("rules", "need", "allowed"), rows(), ids=lambda value: str(value).replace(" ", "_"))
def test_what_rules_allow(rules: str, need: Need, allowed: bool) -> None:
    assert parse(rules.split()).allows(need) is allowed


def test_there_are_a_hundred_rows() -> None:
    assert len(rows()) >= 100


@pytest.mark.parametrize(
    ("rule", "column", "why"),
    [
        ("services:gt@foo", 10, "did you mean get?"),
        ("services:get,lst", 14, "did you mean list?"),
        ("services:get,,list", 14, "there must be a verb"),
        ("services:@foo", 10, "there must be a verb"),
        ("services:", 10, "there must be a verb"),
        ("services:Get", 10, "did you mean get?"),
        ("services:read", 10, "'read' is no verb; there are register, replace, update, delete, get, list, watch,"),
        ("services: get", 10, "no verb"),
        ("services:get ,list", 10, "no verb"),
        ("services:batch", 10, "its operations"),
        ("services.Batch", 10, "its operations"),
        ("services:get@", 14, "leave it out"),
        ("services:get@_keys", 14, "the broker's own"),
        ("services:get@_", 14, "the broker's own"),
        ("services:get@Key Exists", 14, "cannot be a name"),
        ("services:get@ foo", 14, "white space"),
        ("services:get@foo\n", 17, "control characters"),
        ("services:get@\ud800", 14, "UTF-8"),
        ("services:get@" + "x" * 4097, 14, "longer than 4096 bytes"),
        ("services.Gett", 10, "did you mean Get?"),
        ("services.get", 10, "no method"),
        ("services.GET", 10, "no method"),
        ("services@foo", 9, "goes with verbs"),
        ("ossec:AddAgent", 1, "only services has verbs"),
        ("ossec.AddAgent@foo", 15, "goes with verbs"),
        (":get", 1, "only services has verbs"),
        ("*", 1, "a namespace"),
        ("*.*", 1, "a namespace"),
        (".F", 1, "a namespace"),
        ("a..F", 3, "a namespace"),
        ("ossec.", 7, "a method's name"),
        ("ossec._x", 7, "a method's name"),
        ("ossec.a-b", 7, "a method's name"),
        ("ossec.Add*", 7, "a method's name"),
        ("_config.X", 1, "the broker's own"),
        ("_keys", 1, "the broker's own"),
        ("pkg._sub.F", 5, "the broker's own"),
        ("api.X", 1, "no namespace"),
        ("worker", 1, "no namespace"),
        ("os sec.F", 1, "a namespace"),
        ("ping ", 1, "a namespace"),
        (" ping", 1, "a namespace"),
    ],
)
def test_a_rule_that_cannot_be_read_says_where(rule: str, column: int, why: str) -> None:
    with pytest.raises(BadRule, match=re.escape(f"column {column}: ")) as caught:
        parse_rule(rule)
    assert why in str(caught.value)


@pytest.mark.parametrize("rule", ["", "x" * 6000, "services:" + "get," * 2000])
def test_a_rule_without_a_place(rule: str) -> None:
    with pytest.raises(BadRule) as caught:
        parse_rule(rule)
    assert len(str(caught.value)) < 200


def test_the_number_of_rules_is_bounded() -> None:
    parse(["ping"] * RULES_MAX)
    for texts in ([], ["ping"] * (RULES_MAX + 1)):
        with pytest.raises(BadRule):
            parse(texts)


# --- laws ---

names = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=6)
few = st.text("ab/", max_size=4)
verbs = st.frozensets(st.sampled_from((*VERBS, "*")), min_size=1, max_size=3)
registry_rules = st.builds(Rule, st.just(REGISTRY), verbs, few)
other_rules = st.builds(
    Rule,
    st.sampled_from(("ping", "ossec")),
    st.sampled_from(("*", "F", "G")).map(lambda method: frozenset({method})),
    st.just(""),
)
rules = st.lists(registry_rules | other_rules, max_size=4)
needs = st.one_of(
    st.builds(Need, st.just(REGISTRY), st.sampled_from(VERBS).map(str.title), st.none() | few),
    st.builds(Need, st.sampled_from(("ping", "ossec")), st.sampled_from(("F", "G"))),
)


@given(rules, registry_rules | other_rules, needs)
def test_one_more_rule_takes_no_right_away(some: list[Rule], more: Rule, need: Need) -> None:
    assert Rights([*some, more]).allows(need) == (Rights(some).allows(need) or Rights([more]).allows(need))


@given(verbs, few, few, needs)
def test_a_longer_prefix_grants_nothing_that_the_shorter_does_not(
    which: frozenset[str], prefix: str, more: str, need: Need
) -> None:
    longer, shorter = Rule(REGISTRY, which, prefix + more), Rule(REGISTRY, which, prefix)
    assert shorter.allows(need) or not longer.allows(need)


@given(rules, needs, few)
def test_who_may_use_a_prefix_may_use_all_that_begins_so(some: list[Rule], need: Need, more: str) -> None:
    if need.text is not None and Rights(some).allows(need):
        assert Rights(some).allows(need._replace(text=need.text + more))


@given(rules, st.lists(needs, max_size=4))
def test_what_is_missing_is_the_first_that_is_not_allowed(some: list[Rule], wanted: list[Need]) -> None:
    rights = Rights(some)
    missing = rights.missing(wanted)
    assert (missing is None) == all(map(rights.allows, wanted))
    if missing is not None:
        assert not rights.allows(missing)
        assert all(map(rights.allows, wanted[: wanted.index(missing)]))


@given(needs)
def test_the_rule_that_a_refusal_names_allows_it(need: Need) -> None:
    assert parse_rule(explain(need)).allows(need)


@given(registry_rules | other_rules)
def test_a_rule_reads_as_it_is_written(rule: Rule) -> None:
    usual = rule._replace(methods=frozenset({"*"})) if "*" in rule.methods else rule
    assert parse_rule(str(usual)) == usual


@given(st.text(max_size=30) | st.text("services:getlx,@*._ ", max_size=20))
def test_any_text_is_a_rule_or_is_refused(text: str) -> None:
    try:
        rule = parse_rule(text)
    except BadRule as error:
        assert len(str(error)) < 300
    else:
        assert parse_rule(str(rule)) == rule


@given(rules)
def test_a_whole_namespace_is_one_in_which_nothing_is_missing(some: list[Rule]) -> None:
    rights = Rights(some)
    for namespace in rights.namespaces - {REGISTRY}:
        assert (namespace in rights.whole()) == rights.allows(Need(namespace, "Any"))
    if REGISTRY in rights.whole():
        assert all(rights.allows(Need(REGISTRY, verb, "")) for verb in VERBS)
