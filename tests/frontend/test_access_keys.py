from __future__ import annotations

from collections.abc import Callable

import pytest

from bpbroker.frontend.access_keys import WrongKeys, matches


@pytest.mark.parametrize("candidates", [["secret"], ["other"]])
def test_any_of_the_configured_keys_opens(candidates: list[object]) -> None:
    assert matches(candidates, ("secret", "other"))


@pytest.mark.parametrize(
    "candidates",
    [
        [], [""], ["wrong"], ["secret "], ["SECRET"], ["secret", "secret"], [["secret"]], [None], [7], [True],
        ["secret" * 1000], ["\ud800"], ["se\u0301cret"],
    ],
)  # fmt: skip
def test_anything_else_does_not(candidates: list[object]) -> None:
    assert not matches(candidates, ("secret", "sécret"))


def test_an_address_has_to_pause_after_too_many_wrong_keys() -> None:
    wrong = WrongKeys(3)
    for moment in (0.0, 10.0, 20.0):
        assert wrong.pause_secs("a", moment) is None
        wrong.count("a", moment)
    assert wrong.pause_secs("a", 21.0) == 39
    assert wrong.pause_secs("b", 21.0) is None
    assert wrong.pause_secs("a", 60.5) is None
    wrong.count("a", 60.5)
    assert wrong.pause_secs("a", 61.0) == 9


def test_memory_is_bounded_however_many_addresses_try() -> None:
    wrong = WrongKeys(3)
    for number in range(30_000):
        wrong.count(f"10.0.{number // 256}.{number % 256}", number / 1000)
    assert len(wrong._counted) <= 10_000


def test_datagrams_whose_source_can_be_forged_shut_no_one_out() -> None:
    wrong = WrongKeys(3)
    for _ in range(100):
        wrong.count("a", 0.0, proven=False)
    assert wrong.pause_secs("a", 1.0) is None
    wrong.count("a", 1.0)  # one over a connection: now the datagrams count as well
    assert wrong.pause_secs("a", 2.0) == 58
    assert wrong.pause_secs("a", 61.5) is None


def test_a_flood_of_forged_addresses_does_not_wash_a_guesser_out() -> None:
    wrong = WrongKeys(3)
    for _ in range(3):
        wrong.count("guesser", 0.0)
    for number in range(30_000):
        wrong.count(f"10.0.{number // 256}.{number % 256}", 1.0, proven=False)
    assert wrong.pause_secs("guesser", 2.0) == 58
    assert len(wrong._counted) <= 10_000


_ATTACKS: dict[str, Callable[[int], list[float]]] = {
    "steady": lambda limit: [number * 6 / limit for number in range(limit * 30)],
    "at once": lambda limit: [at for at in (0.0, 59.0, 61.0, 119.0, 500.0, 559.9) for _ in range(limit * 2)],
    "when it opens": lambda _: [tenth / 10 for tenth in range(3000)],
    "slow, then at once": lambda limit: [*(number * 59 / limit for number in range(limit)), *[60.5] * (limit * 2)],
}
"""When the guesses come, in seconds."""


@pytest.mark.parametrize("limit", [20, 100, 1000])
@pytest.mark.parametrize("attack", _ATTACKS)
def test_no_minute_has_many_more_looks_than_the_limit(limit: int, attack: str) -> None:
    wrong = WrongKeys(limit)
    looks: list[float] = []

    def guess(now: float) -> bool:
        looked = wrong.may_look("a", ("guess",), now)
        if looked:
            looks.append(now)
        wrong.count("a", now)
        return looked

    for now in _ATTACKS[attack](limit):
        while guess(now) and attack == "when it opens":
            pass
    assert len(looks) >= limit
    beyond = max(3, limit * 5 // 100) + max(6, limit // 10)
    assert max(sum(at - 60 < moment <= at for moment in looks) for at in looks) <= limit + beyond
    assert wrong.may_look("b", ("guess",), 600.0)


def test_a_client_behind_the_address_of_one_that_waits_for_answers_is_looked_at() -> None:
    wrong = WrongKeys(100)
    for _ in range(102):
        wrong.may_look("a", ("guess",), 0.0)
        wrong.count("a", 0.0)
    assert wrong.pause_secs("a", 0.0) == 60
    assert wrong.may_look("a", ("new",), 0.5)


def test_which_keys_were_right_is_kept_in_bounded_memory() -> None:
    wrong = WrongKeys(3)
    for number in range(30_000):
        wrong.was_right(f"10.0.{number // 256}.{number % 256}", ("key",))
    assert len(wrong._right) <= 10_000
