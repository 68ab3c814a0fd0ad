import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tdmpc_prune.pruning.schedule import Schedule

KINDS = ["cosine", "cubic", "linear", "geometric", "one-shot"]
HALF = {"start": 100, "end": 500, "events": 4, "initial": 0.1, "final": 0.9}


@pytest.mark.parametrize(
    ("kind", "quarter", "half", "three_quarters"),
    [
        # 0.1 + 0.8 (1 - cos(pi p)) / 2, with cos(pi/4) = 0.70710678
        ("cosine", 0.1 + 0.8 * 0.14644661, 0.5, 0.1 + 0.8 * 0.85355339),
        # 0.9 - 0.8 (1 - p)^3
        ("cubic", 0.9 - 0.8 * 27 / 64, 0.8, 0.9 - 0.8 / 64),
        ("linear", 0.3, 0.5, 0.7),
        # of 0.9 there is a ninth in the end: 0.9 / 9^p is left
        ("geometric", 1 - 0.9 * 0.57735027, 0.7, 1 - 0.9 * 0.19245009),
    ],
)
def test_formulas_by_hand(kind, quarter, half, three_quarters):
    schedule = Schedule(kind=kind, **HALF)
    found = [schedule.sparsity(step) for step in (0, 100, 200, 300, 400, 500, 10_000)]
    assert found == pytest.approx([0.1, 0.1, quarter, half, three_quarters, 0.9, 0.9], abs=1e-8)
    assert schedule.event_steps() == [200, 300, 400, 500]


def test_one_shot_is_there_from_its_start():
    schedule = Schedule(kind="one-shot", **HALF)
    assert [schedule.sparsity(step) for step in (0, 99, 100, 101, 500)] == [0.1, 0.1, 0.9, 0.9, 0.9]
    assert schedule.event_steps() == [100]
    assert [schedule.due(99, 0), schedule.due(100, 0), schedule.due(600, 1)] == [False, True, False]


@st.composite
def schedules(draw):
    start, length = draw(st.integers(0, 10**6)), draw(st.integers(1, 10**6))
    initial, final = sorted(draw(st.tuples(*[st.floats(0, 0.999)] * 2)))
    return Schedule(
        kind=draw(st.sampled_from(KINDS)),
        start=start,
        end=start + length,
        events=draw(st.integers(1, min(length, 50))),
        initial=initial,
        final=final,
    )


@given(schedules(), st.lists(st.floats(-0.2, 1.2), min_size=2, max_size=20))
def test_never_falls_and_ends_exactly(schedule, progress):
    length = schedule.end - schedule.start
    steps = sorted(schedule.start + round(p * length) for p in [*progress, 1 - 1e-6, 1 - 1e-3])
    found = [schedule.sparsity(step) for step in steps]
    assert found == sorted(found)
    assert all(schedule.initial <= s <= schedule.final for s in found)
    assert schedule.sparsity(schedule.end) == schedule.sparsity(schedule.end + 1) == schedule.final
    assert schedule.sparsity(schedule.start - 1) == schedule.initial


@given(schedules())
def test_events_are_evenly_spaced_and_due_one_by_one(schedule):
    steps = schedule.event_steps()
    assert schedule.sparsity(steps[-1]) == schedule.final
    if schedule.kind != "one-shot":
        assert steps[-1] == schedule.end
        gaps = [b - a for a, b in zip([schedule.start, *steps], steps, strict=False)]
        assert min(gaps) >= 1
        assert max(gaps) - min(gaps) <= 1
    for done, step in enumerate(steps):
        assert not schedule.due(step - 1, done)
        assert schedule.due(step, done)
    assert not schedule.due(steps[-1] + 10**6, len(steps))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "cos"}, "kind is 'cos'; choose one of cosine, cubic, linear, geometric, one-shot"),
        ({"start": -1}, "start is -1; choose 0 or more environment steps"),
        ({"end": 100}, "end is 100; choose more than start, 100"),
        ({"events": 0}, "events is 0; choose 1 to 400 (end - start)"),
        ({"events": 401}, "events is 401; choose 1 to 400 (end - start)"),
        ({"initial": -0.1}, "initial is -0.1; choose a sparsity from 0 to below 1"),
        ({"final": 1.0}, "final is 1.0; choose a sparsity from 0.1 to below 1"),
        ({"final": 0.05}, "final is 0.05; choose a sparsity from 0.1 to below 1"),
        ({"final": float("nan")}, "final is nan; choose a sparsity from 0.1 to below 1"),
    ],
)
def test_wrong_settings_say_what_to_choose(change, message):
    with pytest.raises(ValueError, match="choose") as error:
        Schedule(**{"kind": "cosine", **HALF, **change})
    assert str(error.value) == message


def test_importing_it_is_light():
    heavy = "import sys, tdmpc_prune.pruning.schedule; print({'torch', 'numpy'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "set()"
