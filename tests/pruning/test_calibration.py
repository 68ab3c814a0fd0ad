"""When `calibrated` measures what the return can spare, what it asks, and what follows from the answers."""

import pytest
import torch
from test_groups import TWELVE
from test_pruner import STEPS, assert_equal_pruners, make_pruner, measure, run


def test_calibration_masks_the_lowest_units_of_one_group_at_a_time():
    pruner = make_pruner(criterion="fisher", allocation="calibrated", final=0.8)
    run(pruner, stop=349)
    order = {name: score.argsort().tolist() for name, score in pruner.tracker.scores("fisher").items()}
    asked = []

    def note(removal):
        asked.append({name: units.tolist() for name, units in removal.items()})
        return measure(removal)

    assert pruner.calibrate(350, note) == 37 == len(asked)  # whole, and 12 groups x 3 shares
    assert asked[0] == {}
    for i, name in enumerate(TWELVE):
        units = 32 if name == "latent" else 128
        for j, n in enumerate((units // 4, units // 2, 3 * units // 4)):
            assert asked[1 + 3 * i + j] == {name: order[name][:n]}
        curve = pruner.curves[name]
        assert curve.width == units
        assert curve.shares == (0, 0.25, 0.5, 0.75)
        assert curve.drops == pytest.approx([0, *((i + 1) * s * units / 128 for s in (0.25, 0.5, 0.75))])
        assert curve.full == 100
    assert pruner.widths == pruner.initial_widths  # nothing is gone yet


@pytest.mark.parametrize(
    ("whole", "masked", "drops", "full"), [(50, 60, 0, 50), (-200, -500, 300, 300), (-200, -100, 0, 0)]
)
def test_returns_above_the_whole_or_below_zero(whole, masked, drops, full):
    pruner = make_pruner(allocation="calibrated")
    run(pruner, stop=349)
    pruner.calibrate(350, lambda removal: masked if removal else whole)
    curve = pruner.curves["latent"]
    assert curve.drops == (0, drops, drops, drops)
    assert curve.full == full
    pruner.prune(350)
    assert pruner.sparsity > pruner.schedule.sparsity(350) - 0.01


@pytest.mark.parametrize("whole", [100.0, 30.0, -5.0])
def test_what_is_nearly_free_goes_first_whatever_the_return_is(whole):
    pruner = make_pruner(allocation="calibrated", final=0.5, calibrations=1, events=2)
    run(pruner, stop=499)

    def costs(removal):
        """Rewards cost next to nothing, everything else much."""
        dear = not all(name.startswith("reward") for name in removal)
        return whole - sum(len(units) for units in removal.values()) * (0.5 if dear else 0.002)

    pruner.calibrate(500, costs)
    assert len({curve.full for curve in pruner.curves.values()}) == 1
    pruner.prune(500)
    widths = pruner.widths
    assert max(widths["reward.0"], widths["reward.2"]) < min(
        width for name, width in widths.items() if not name.startswith("reward") and name != "latent"
    )


def test_a_calibration_that_is_due_cannot_be_left_out():
    pruner = make_pruner(allocation="calibrated")
    run(pruner, stop=349)
    assert pruner.calibration_due(350)
    with pytest.raises(ValueError, match="call calibrate first"):
        pruner.prune(350)


def test_calibration_spares_what_costs():
    pruner = make_pruner(allocation="calibrated", final=0.5, calibrations=1, events=2)
    run(pruner, stop=499)

    def costs(removal):
        return 100.0 - 90 * any(name.startswith(("encoder", "latent")) for name in removal)

    pruner.calibrate(500, costs)
    pruner.prune(500)
    assert pruner.widths["encoder.0"] == 128
    assert pruner.widths["latent"] == 32
    assert pruner.widths["reward.2"] < 128


@pytest.mark.parametrize(
    ("events", "calibrations", "expected"),
    [(12, 2, [1, 7]), (12, 1, [1]), (12, 3, [1, 5, 9]), (1, 2, [1]), (3, 5, [1, 2, 3])],
)
def test_the_first_removal_is_calibrated_and_others_evenly_spread(events, calibrations, expected):
    pruner = make_pruner(allocation="calibrated", events=events, calibrations=calibrations)
    run(pruner, stop=199)
    happened = []
    for number, step in enumerate(pruner.schedule.event_steps(), 1):
        if pruner.calibration_due(step):
            measured = pruner.calibrate(step, measure)
            assert measured in (1, 37)  # the whole; with three shares of every group
            happened += [number] if measured == 37 else []
        assert not pruner.calibration_due(step)
    assert happened == expected
    assert not pruner.calibration_due(STEPS)


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        ([400, 500, 501, 620, 626], [True, False, True, False, False]),  # 500 is not more than a quarter
        ([400, 800, 900, 1000, 1001], [True, True, False, False, True]),  # against the last, not the first
        ([400, 300, 390, 499, 480], [True, False, False, False, False]),  # a fall is no reason
        ([-400, -300, -299, -220, -224], [True, False, True, True, False]),
        ([0, 0, 0.1, 0.1, 0.2], [True, False, True, False, True]),
        ([400, float("nan"), 501, 502, 503], [True, False, True, False, False]),
    ],
)
def test_an_agent_that_has_learned_is_calibrated_anew(returns, expected):
    pruner = make_pruner(allocation="calibrated", events=5, calibrations=1)
    run(pruner, stop=199)
    anew = []
    for step, whole in zip(pruner.schedule.event_steps(), returns, strict=True):
        before = pruner.curves
        measured = pruner.calibrate(step, lambda removal, whole=whole: whole - 10 * bool(removal))
        assert measured == (37 if pruner.curves is not before else 1)
        anew.append(measured == 37)
    assert anew == expected


def test_what_is_measured_anew_decides():
    """Nothing misses the latent, until the agent has learned."""
    pruner = make_pruner(allocation="calibrated", final=0.6, calibrations=1, events=2)
    first, second = pruner.schedule.event_steps()
    run(pruner, stop=first - 1)
    pruner.calibrate(first, lambda removal: 10.0 - 9 * (bool(removal) and "latent" not in removal))
    pruner.prune(first)
    left = pruner.widths
    assert left["latent"] < 32
    assert pruner.calibrate(second, lambda removal: 100.0 - 90 * ("latent" in removal)) == 37
    pruner.prune(second)
    assert pruner.widths["latent"] == left["latent"]
    assert pruner.widths["encoder.0"] < 128


def test_a_run_of_an_earlier_version_does_not_know_its_return_of_then():
    pruner = make_pruner(allocation="calibrated", events=5, calibrations=1)
    run(pruner, stop=400)
    assert pruner.events == 1
    record = pruner.record()
    assert record.pop("calibrated_at") == 100
    resumed = make_pruner(pruner.agent, allocation="calibrated", events=5, calibrations=1)
    resumed.load(record | {"calibrations": 1}, pruner.state_dict())
    run(resumed, start=401, stop=440)
    assert not resumed.calibration_due(430)
    assert resumed.calibration_due(450)
    assert resumed.calibrate(450, lambda removal: 1000.0) == 1


def test_only_calibrated_calibrates():
    assert not any(make_pruner(allocation=a).calibration_due(800) for a in ("uniform", "global"))
    late = make_pruner(allocation="calibrated", events=12)
    assert not late.calibration_due(800)  # no scores yet
    run(late, stop=199)
    assert late.calibration_due(800)
    assert late.calibrate(800, measure) == 37  # all that were due, in one
    assert not late.calibration_due(STEPS)


@pytest.mark.parametrize("criterion", ["random", "taylor"])
def test_an_interrupted_calibration_leaves_nothing_behind(criterion):
    interrupted, straight = (make_pruner(allocation="calibrated", criterion=criterion) for _ in range(2))
    for pruner in (interrupted, straight):
        run(pruner, stop=199)
    count = iter(range(9))

    def stops(removal):
        next(count)
        return measure(removal)

    with pytest.raises(StopIteration):
        interrupted.calibrate(650, stops)
    assert interrupted.calibration_due(650)
    assert interrupted.curves is None
    for pruner in (interrupted, straight):
        pruner.calibrate(650, measure)
        pruner.prune(650)
    assert_equal_pruners(interrupted, straight)


def test_the_random_units_calibrated_are_those_that_go():
    pruner = make_pruner(allocation="calibrated", criterion="random", events=1)
    run(pruner, stop=199)
    asked = {}
    row = {g.name: g.members[0].module.weight.detach().clone() for g in pruner.groups}

    def note(removal):
        asked.update({name: units.tolist() for name, units in removal.items()})
        return measure(removal)

    pruner.calibrate(800, note)
    pruner.prune(800)
    gone = 128 - pruner.widths["encoder.0"]
    assert 0 < gone < 97
    stays = sorted(set(range(128)) - set(asked["encoder.0"][:gone]))  # of its lowest three quarters
    assert torch.equal(pruner.agent.model.encoder[0].weight, row["encoder.0"][stays])
