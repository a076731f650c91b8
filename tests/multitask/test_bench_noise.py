"""How the benchmark suite takes its samples, and when it says that a machine is too noisy to judge."""

import random
import time
from itertools import pairwise

import pytest

from rsn2.bench import measure, noise, quiet, timing
from rsn2.bench.timing import interleaved


def test_all_candidates_run_in_turn_and_none_always_behind_the_same() -> None:
    heard: list[str] = []
    calls = {name: (lambda name=name: heard.append(name)) for name in "abcd"}
    before = {name: (lambda: None) for name in calls}  # so a sample is one call
    found = interleaved(calls, 0.0, 40, before=before, primed=False)
    assert {len(samples) for samples in found.values()} == {40}
    timed = heard[8:]
    assert all(set(timed[start : start + 4]) == set("abcd") for start in range(0, len(timed), 4))
    neighbours = {before for before, after in pairwise(timed) if after == "b"}
    assert neighbours >= {"a", "c", "d"}


def test_calls_that_are_not_timed_go_before_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "_MOST_PRIMING", 3)
    heard: list[str] = []
    calls = {name: (lambda name=name: heard.append(name)) for name in "abc"}
    ready: list[str] = []
    interleaved(calls, 0.0, 5, before={name: (lambda name=name: ready.append(name)) for name in calls})
    timed = heard[6:]
    assert len(timed) == 4 * 3 * 5 and timed[0::4] == timed[1::4] == timed[2::4] == timed[3::4]
    assert ready == heard


def test_a_long_call_is_not_repeated_for_the_sake_of_the_caches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "LONG", 0.001)
    monkeypatch.setattr(timing, "_MOST_PRIMING", 1)
    heard: list[str] = []
    calls = {"long": lambda: (heard.append("long"), time.sleep(0.002)), "short": lambda: heard.append("short")}
    interleaved(calls, 0.0, 5, before={name: (lambda: None) for name in calls})
    assert heard.count("long") == 2 + 5 and heard.count("short") == 2 + 2 * 5


def test_rounds_are_taken_again_until_the_core_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    states = iter([True, False, False, True, True])
    probe = quiet.Probe()
    monkeypatch.setattr(probe, "quiet", lambda: next(states))
    rounds = iter(["spoilt", "good"])
    found, left = probe.during(lambda: next(rounds), 10.0)
    assert found == "good" and 0 < left < 10 and probe.loud == 0


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = quiet.Probe()
    monkeypatch.setattr(probe, "quiet", lambda: False)
    assert probe.during(lambda: "taken", 0.05) == ("taken", 0.0)
    assert probe.during(lambda: "taken", 0.0) == ("taken", 0.0)
    assert probe.loud == 2


def test_passes_of_a_case_are_one_record() -> None:
    first = {"key": "k", "passes": 1, "rounds": [1], "taken": 1.0, "loud": 1, "unavailable": {}}
    first["seconds"] = {"a": [1.0], "b": [2.0]}
    second = first | {"loud": 0, "seconds": {"a": [3.0]}, "unavailable": {"b": "slow"}, "wrong": ["rsn2"]}
    found = measure.merged(measure.merged(first, second), first)
    assert found["seconds"] == {"a": [1.0, 3.0, 1.0]} and found["passes"] == 3 and found["loud"] == 2
    assert found["rounds"] == [1, 1, 1]
    assert found["unavailable"] == {"b": "slow"} and found["wrong"] == ["rsn2"]


def test_what_makes_ready_is_not_timed() -> None:
    found = interleaved({"quick": lambda: None}, 0.0, 3, before={"quick": lambda: time.sleep(0.01)})
    assert max(found["quick"]) < 0.01


def test_a_ratio_survives_slow_rounds_and_has_an_interval() -> None:
    draw = random.Random(0)
    load = [draw.choice((1.0, 1.0, 5.0)) for _ in range(30)]
    slow = [2.0 * each * draw.uniform(0.98, 1.02) for each in load]
    fast = [each * draw.uniform(0.98, 1.02) for each in load]
    found = noise.ratio(slow, fast)
    assert found.low <= found.value <= found.high
    assert abs(found.value - 2) < 0.05 and found.high - found.low < 0.1


def test_the_interval_is_that_of_a_binomial_distribution() -> None:
    # Of 11 sorted samples, the second and the last but one: 1 - 2 * P(Binomial(11, 1/2) <= 1) = 0.988.
    found = noise.ratio([float(number) for number in range(1, 12)], [1.0] * 11)
    assert (found.low, found.value, found.high) == (2.0, 6.0, 10.0)
    assert noise.ratio([3.0, 1.0, 2.0], [1.0] * 3) == noise.Ratio(2.0, 1.0, 3.0)
    # Nine are the first of which the outermost do not count.
    for count, low in ((8, 1.0), (9, 2.0)):
        assert noise.ratio([float(number) for number in range(1, count + 1)], [1.0] * count).low == low
    with pytest.raises(ValueError, match="as many of both"):
        noise.ratio([1.0], [])


def test_rounds_of_a_pass_are_off_together() -> None:
    """A slow pass is one of five, however many rounds it had: it moves the interval, and not the ratio."""
    quiet, slow = [2.0] * 4, [3.0] * 40
    found = noise.ratio([*quiet, *slow, *quiet, *quiet, *quiet], [1.0] * 56, [4, 40, 4, 4, 4])
    assert found == noise.Ratio(2.0, 2.0, 3.0)
    with pytest.raises(ValueError, match=r"\[4\] in passes"):
        noise.ratio(quiet + quiet, [1.0] * 8, [4])


def test_a_machine_on_which_a_call_differs_from_itself_is_too_noisy() -> None:
    assert noise.verdict([0.01] * 19 + [0.3]).quiet
    noisy = noise.verdict([0.01] * 15 + [0.3] * 5)
    assert not noisy.quiet and "TOO NOISY TO JUDGE" in str(noisy) and "in 5 of 20" in str(noisy)
    assert not noise.verdict([]).quiet
    sure, vague = noise.Ratio(2.0, 1.9, 2.1), noise.Ratio(2.0, 1.9, 2.5)
    assert noise.verdict([0.01], [sure] * 6 + [vague] * 2).quiet
    assert not noise.verdict([0.01], [sure] * 6 + [vague] * 3).quiet
    record = {"baseline": "a", "seconds": {"a": [1.0, 1.0], "a again": [2.0, 2.0], "b": [1.0, 1.0]}}
    assert noise.control_error(record) == 0.5 and noise.is_unsure(record, "b")
    assert noise.speed(record, "a again") == noise.speed(record, "a again", "b") == noise.Ratio(0.5, 0.5, 0.5)
