"""Whole runs of the pruner on made-up gradients: what goes when, and how much is left."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from test_groups import TWELVE, Foreign
from torch import nn

from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import TDMPCConfig
from tdmpc_prune.pruning.config import ImportanceConfig, Limits, PruneConfig, SparsityError
from tdmpc_prune.pruning.importance import CRITERIA
from tdmpc_prune.pruning.pruner import LOGGED_CRITERIA, Pruner
from tdmpc_prune.pruning.schedule import Schedule

ALLOCATIONS = ["uniform", "global", "calibrated"]
PARAMETERS = 114_244
"""Of TD-MPC at laptop size: 5 observations, 1 action, 128 hidden and 32 latent units, two Qs."""
LARGEST_UNIT = 898
"""A latent dimension: rows of 129 in encoder and dynamics, columns of 128 in dynamics, reward, policy and Qs."""
STEPS = 1000


def make_agent(widths=None):
    return TDMPC(TDMPCConfig(), obs_dim=5, action_dim=1, widths=widths)


def make_pruner(agent=None, *, events=4, final=0.8, seed=0, kind="cosine", limits=None, **settings):
    importance = settings.pop("importance", ImportanceConfig(warmup=3))
    settings = {"compensation": "none"} | settings
    config = PruneConfig(sparsity=final, limits=limits or Limits(), importance=importance, **settings)
    schedule = Schedule(kind=kind, start=200, end=800, events=events, final=final)
    return Pruner(agent or make_agent(), config, schedule, seed=seed)


def learn(pruner, step, spread=True, scales=None):
    """One update's worth of gradients, which depend on the step alone; without `spread` all much the same."""
    generator = torch.Generator().manual_seed(step)
    for name, net in pruner.agent.components().items():
        for p in net.parameters():
            p.grad = (scales or {}).get(name, 1.0) * torch.randn(p.shape, generator=generator)
            if spread:
                p.grad *= torch.logspace(-2, 0, p.shape[0]).view(-1, *[1] * (p.dim() - 1))
            pruner.observe([p])
    pruner.advance(step / STEPS)


def measure(removal):
    """A return of 100, of which every group can cost a different part."""
    return 100.0 - sum((TWELVE.index(name) + 1) * len(units) / 128 for name, units in removal.items())


def run(pruner, every=50, start=0, stop=STEPS, spread=True):
    """A training loop; returns its events."""
    events = []
    for step in range(start, stop + 1, every):
        learn(pruner, step, spread)
        if pruner.due(step):
            if pruner.calibration_due(step):
                pruner.calibrate(step, measure)
            events.append(pruner.prune(step))
    return events


def parameters(agent):
    return sum(p.numel() for p in agent.model.parameters())


def assert_on_schedule(pruner, events, final):
    """Never beyond the schedule, at the end less than one unit short of it, and the networks agree."""
    assert [e.number for e in events] == list(range(1, len(pruner.schedule.event_steps()) + 1))
    for event, step in zip(events, pruner.schedule.event_steps(), strict=True):
        assert event.scheduled == pruner.schedule.sparsity(step)
        assert event.sparsity <= event.scheduled
        assert not event.idle
    last = events[-1]
    assert last.scheduled == final
    assert final - LARGEST_UNIT / PARAMETERS < last.sparsity == pruner.sparsity  # 0.8 of a percentage point
    left = parameters(pruner.agent)
    assert 1 - left / PARAMETERS == last.sparsity
    assert left == pruner.metrics()["prune/params"]
    assert sum(sum(e.removed.values()) for e in events) == 11 * 128 + 32 - sum(pruner.widths.values())


# Schedule and sparsity


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_no_criterion_passes_the_schedule(allocation, criterion):
    pruner = make_pruner(criterion=criterion, allocation=allocation, events=3)
    assert parameters(pruner.agent) == PARAMETERS == pruner.initial_parameters
    events = run(pruner, every=100)
    assert_on_schedule(pruner, events, 0.8)
    if allocation == "calibrated":
        assert set(pruner.curves) == set(TWELVE)


@pytest.mark.parametrize("allocation", ALLOCATIONS)
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("final", [0.5, 0.9, 0.95])
def test_every_target_is_met(allocation, criterion, final):
    pruner = make_pruner(allocation=allocation, criterion=criterion, final=final)
    pruner.check_target()
    assert_on_schedule(pruner, run(pruner), final)


@pytest.mark.parametrize("kind", ["cubic", "linear"])
def test_every_kind_of_schedule_ends_at_its_target(kind):
    pruner = make_pruner(kind=kind)
    assert_on_schedule(pruner, run(pruner), 0.8)


def test_one_shot_removes_everything_at_once():
    pruner = make_pruner(kind="one-shot", final=0.6)
    (event,) = run(pruner)
    assert (event.number, event.scheduled) == (1, 0.6)
    assert 0.59 < pruner.sparsity <= 0.6


def test_nothing_is_due_before_its_step_or_during_the_warm_up_or_after_the_end():
    pruner = make_pruner(importance=ImportanceConfig(warmup=7))
    assert pruner.schedule.event_steps() == [350, 500, 650, 800]
    assert [event.number for event in run(pruner)] == [1, 2, 3, 4]
    assert not pruner.due(10**9)
    pruner = make_pruner(importance=ImportanceConfig(warmup=7))
    run(pruner, stop=349)  # 7 updates
    assert not pruner.due(349)
    assert pruner.due(350)
    late = make_pruner(importance=ImportanceConfig(warmup=9))
    run(late, stop=349)  # 7 updates
    assert not late.due(350)
    learn(late, 350)
    assert not late.due(400)
    learn(late, 400)
    assert late.due(400)


def test_a_loop_that_comes_late_merges_events():
    pruner = make_pruner(events=6)  # at 300, 400, ..., 800
    run(pruner, stop=250)
    first = pruner.prune(450)
    assert (first.number, first.scheduled) == (2, pruner.schedule.sparsity(450))
    assert not pruner.due(499)
    assert pruner.due(500)
    last = pruner.prune(5000)
    assert (last.number, last.scheduled) == (6, 0.8)
    assert not pruner.due(10**9)
    assert 0.79 < pruner.sparsity <= 0.8


def test_removed_says_how_many_went():
    pruner = make_pruner()
    run(pruner, stop=349)
    before = pruner.widths
    event = pruner.prune(350)
    assert event.removed == {n: before[n] - w for n, w in pruner.widths.items() if w < before[n]}
    assert sum(event.removed.values()) > 0
    assert {g.name: g.units for g in pruner.groups} == pruner.widths
    assert len(pruner.tracker.scores("taylor")["q1.0"]) == pruner.widths["q1.0"]


def test_the_lowest_scores_go():
    pruner = make_pruner(criterion="gradient")
    run(pruner, stop=349)
    scores = pruner.tracker.scores("gradient")
    with torch.no_grad():  # biases that say which unit is whose
        for group in pruner.groups:
            group.members[0].module.bias.copy_(torch.arange(group.units))
    event = pruner.prune(350)
    assert len(event.removed) == 12
    for group in pruner.groups:
        stays = scores[group.name].argsort()[event.removed[group.name] :].sort().values
        assert group.members[0].module.bias.tolist() == stays.tolist()
        assert torch.equal(pruner.tracker.scores("gradient")[group.name], scores[group.name][stays])


def test_global_ranks_normalised_scores():
    """A component whose loss is on another scale loses the same units."""
    widths = []
    for scale in (1.0, 1000.0):
        pruner = make_pruner(criterion="gradient", allocation="global")
        for step in range(3):
            learn(pruner, step, scales={"policy": scale})
        pruner.prune(800)
        widths.append(pruner.widths)
    assert widths[0] == widths[1]
    assert widths[0]["policy.0"] + widths[0]["policy.2"] < 256


# Idle, guard


def test_an_event_that_should_remove_but_cannot_is_idle():
    pruner = make_pruner(limits=Limits(min_units=100), final=0.8)  # not checked
    events = run(pruner)
    assert not events[0].idle
    assert [e.idle for e in events[2:]] == [True, True]
    assert events[-1].removed == {}
    assert events[-1].sparsity < 0.5


def test_an_event_with_less_to_remove_than_a_unit_is_not_idle():
    pruner = make_pruner(events=40, final=0.003, allocation="global")  # 9 parameters an event
    events = run(pruner, every=15, start=20, stop=800)
    assert len(events) == 40
    assert 20 < sum(not e.removed for e in events) < 40
    assert not any(e.idle for e in events)


def test_waiting_for_a_whole_multiple_is_not_idle():
    """16 latent dimensions are an eighth of the network: a schedule has to wait for them."""
    limits = Limits(round_to=16, component=dict.fromkeys(make_agent().components(), 0.0))
    pruner = make_pruner(limits=limits, final=0.12, events=4)
    events = run(pruner)
    assert [sum(e.removed.values()) for e in events] == [0, 0, 0, 0]
    assert not any(e.idle for e in events)


@pytest.mark.parametrize("criterion", ["bayesian", "bayesian-saliency"])
def test_the_guard_postpones_and_gives_way_at_the_end(criterion):
    pruner = make_pruner(criterion=criterion, importance=ImportanceConfig(warmup=1))
    learn(pruner, 0, spread=False)
    learn(pruner, 1, spread=False)
    for step, guard in ((350, 0.95), (500, 0.8), (650, 0.65)):  # 0.5 at the last
        wanted = pruner.choose(pruner.schedule.sparsity(step))
        held = pruner.choose(pruner.schedule.sparsity(step), guard=guard)
        event = pruner.prune(step)
        assert event.removed == {name: len(units) for name, units in held.items()}
        assert event.postponed == sum(map(len, wanted.values())) - sum(map(len, held.values()))
        assert event.postponed > 0  # two updates are no evidence
        assert event.against_guard == 0
        assert not event.idle
    last = pruner.prune(800)
    assert last.postponed == 0
    assert last.against_guard > 0
    assert sum(last.removed.values()) > last.against_guard / 2
    assert 0.79 < last.sparsity <= 0.8


def test_the_guard_lets_go_what_is_surely_below_the_cut():
    """5 units of each group get a hundredth of the gradients, all others the same."""
    pruner = make_pruner(criterion="bayesian")
    for step in range(50):
        generator = torch.Generator().manual_seed(step)
        for net in pruner.agent.components().values():
            for p in net.parameters():
                p.grad = torch.randn(p.shape, generator=generator)
        for member in (m for g in pruner.groups for m in g.members):
            for _, p, dim in member.slices():
                p.grad.index_copy_(dim, member.index[:5], 0.01 * p.grad.index_select(dim, member.index[:5]))
        for net in pruner.agent.components().values():
            pruner.observe(net.parameters())
        pruner.advance(0)
    wanted = pruner.choose(0.4)
    assert all(len(units) > 5 for units in wanted.values())
    assert set(wanted) == set(TWELVE)
    held = pruner.choose(0.4, guard=0.95)
    for name in TWELVE:  # of all others hardly one is surely below another
        assert held[name].tolist()[:5] == [0, 1, 2, 3, 4]
        assert len(held[name]) <= 6 < len(wanted[name]) + (name == "latent")


def test_the_guard_relaxes_evenly():
    importance = ImportanceConfig()
    assert [importance.guard_at(event, 4) for event in (1, 2, 3, 4)] == pytest.approx([0.95, 0.8, 0.65, 0.5])
    assert ImportanceConfig(guard=0.9, guard_end=0.9).guard_at(3, 4) == pytest.approx(0.9)
    assert ImportanceConfig(guard=0.0, guard_end=0.9).guard_at(4, 4) == 0  # off
    assert importance.guard_at(1, 1) == 0.95


def test_a_relaxing_guard_keeps_less_for_the_end():
    """The same gradients: what waits for the last removal is less than with as much certainty asked for until then."""
    against = {}
    for end in (0.5, 0.95):
        importance = ImportanceConfig(warmup=1, guard_end=end)
        pruner = make_pruner(criterion="bayesian", importance=importance)
        for step in range(20):
            learn(pruner, step, spread=False)
        against[end] = [pruner.prune(step) for step in (350, 500, 650, 800)][-1].against_guard
    assert against[0.5] < against[0.95] / 2


@pytest.mark.parametrize(
    ("criterion", "guard"), [("bayesian", 0.0), ("fisher", 0.95), ("fisher", 0.0), ("random", 0.95)]
)
def test_without_a_guard_nothing_is_postponed(criterion, guard):
    pruner = make_pruner(criterion=criterion, importance=ImportanceConfig(warmup=1, guard=guard))
    learn(pruner, 0)
    for step in (350, 500, 650, 800):
        event = pruner.prune(step)
        assert (event.postponed, event.against_guard) == (0, 0)
        assert event.scheduled - 0.01 < event.sparsity


# Limits


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_no_coupling_protects_the_latent(allocation):
    pruner = make_pruner(allocation=allocation, limits=Limits(coupling=0))
    pruner.check_target()
    assert_on_schedule(pruner, run(pruner), 0.8)
    assert pruner.widths["latent"] == 32
    assert pruner.agent.model.encoder[2].out_features == 32


@pytest.mark.parametrize("allocation", ALLOCATIONS)
def test_min_units_and_round_to(allocation):
    limits = Limits(min_units=10, round_to=4)
    pruner = make_pruner(allocation=allocation, limits=limits, final=0.9)
    events = run(pruner)
    assert not any(e.sparsity > e.scheduled for e in events)
    assert pruner.sparsity > 0.9 - 4 * LARGEST_UNIT / PARAMETERS
    for width in pruner.widths.values():
        assert width >= 12  # 10, rounded up
        assert width % 4 == 0


def test_components_have_coefficients():
    limits = Limits(component={"encoder": 0.5, "policy": 0.0})
    pruner = make_pruner(limits=limits, final=0.6)
    run(pruner)
    gone = {n: 1 - w / pruner.initial_widths[n] for n, w in pruner.widths.items()}
    assert gone["policy.0"] == gone["policy.2"] == 0
    assert gone["encoder.0"] == pytest.approx(gone["reward.0"] / 2, abs=2 / 128)
    assert gone["q1.3"] == pytest.approx(gone["dynamics.2"], abs=2 / 128)
    assert gone["reward.0"] > 0.4


def test_a_target_out_of_reach_is_refused_in_one_line():
    pruner = make_pruner(limits=Limits(coupling=0, min_units=64), final=0.9)
    with pytest.raises(SparsityError) as refusal:
        pruner.check_target()
    (line,) = str(refusal.value).splitlines()
    assert line.startswith("sparsity 0.9 cannot be reached, 0.6")
    assert line.endswith(
        "11 groups at min_units 64; latent protected (coupling 0); lower it or loosen a limit"
    )
    limit = float(line.split("reached, ")[1].split(" at most")[0])
    make_pruner(limits=Limits(coupling=0, min_units=64), final=limit).check_target()


# Storing


def assert_equal_pruners(a, b):
    assert a.widths == b.widths
    assert json.dumps(a.record()) == json.dumps(b.record())
    mine, theirs = a.state_dict(), b.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(value, theirs[key]) for key, value in mine.items())
    for p, q in zip(a.agent.model.parameters(), b.agent.model.parameters(), strict=True):
        assert torch.equal(p, q)


STORED = [("taylor", "uniform"), ("random", "global"), ("bayesian", "calibrated"), ("magnitude", "global")]


@pytest.mark.parametrize(("criterion", "allocation"), STORED)
@pytest.mark.parametrize("stop", [300, 600])
def test_a_stored_pruner_goes_on_with_the_same_decisions(criterion, allocation, stop):
    settings = {"criterion": criterion, "allocation": allocation, "events": 4}
    straight = make_pruner(**settings, seed=5)
    run(straight, stop=stop)
    record = json.loads(json.dumps(straight.record()))
    tensors = {name: value.clone() for name, value in straight.state_dict().items()}
    agent = make_agent(straight.agent.model.architecture())
    agent.model.load_state_dict(straight.agent.model.state_dict())
    resumed = make_pruner(agent, **settings, seed=99)
    resumed.load(record, tensors)
    assert resumed.sparsity == straight.sparsity == 1 - parameters(agent) / PARAMETERS
    assert resumed.initial_parameters == PARAMETERS
    assert_equal_pruners(resumed, straight)
    assert resumed.metrics() == straight.metrics()
    events = [run(pruner, start=stop + 50) for pruner in (resumed, straight)]
    assert events[0] == events[1]
    assert [e.number for e in events[0]] == ([1, 2, 3, 4] if stop == 300 else [3, 4])
    assert_equal_pruners(resumed, straight)
    assert all(torch.equal(value, tensors[name]) for name, value in tensors.items())


@pytest.mark.parametrize(("criterion", "allocation"), STORED)
def test_two_pruners_decide_equally(criterion, allocation):
    a, b = (make_pruner(criterion=criterion, allocation=allocation) for _ in range(2))
    assert run(a) == run(b)
    assert_equal_pruners(a, b)


def test_the_seed_is_that_of_random_units():
    widths, weights = [], []
    for seed in (1, 2):
        pruner = make_pruner(criterion="random", seed=seed)
        run(pruner, stop=350)
        widths.append(pruner.widths)
        weights.append(pruner.agent.model.encoder[0].weight)
    assert widths[0] == widths[1]
    assert not torch.equal(*weights)


# Metrics


def test_metrics_by_hand():
    pruner = make_pruner()
    run(pruner)
    metrics, w = pruner.metrics(), pruner.widths
    z, a = w["latent"], 1
    macs = {
        "encoder": 5 * w["encoder.0"] + w["encoder.0"] * z,
        "dynamics": (z + a) * w["dynamics.0"] + w["dynamics.0"] * w["dynamics.2"] + w["dynamics.2"] * z,
        "reward": (z + a) * w["reward.0"] + w["reward.0"] * w["reward.2"] + w["reward.2"],
        "policy": z * w["policy.0"] + w["policy.0"] * w["policy.2"] + w["policy.2"] * a,
        "q1": (z + a) * w["q1.0"] + w["q1.0"] * w["q1.3"] + w["q1.3"],
        "q2": (z + a) * w["q2.0"] + w["q2.0"] * w["q2.3"] + w["q2.3"],
    }
    assert metrics["prune/macs"] == sum(macs.values())
    assert metrics["prune/events"] == 4
    assert metrics["prune/sparsity"] == 1 - parameters(pruner.agent) / PARAMETERS
    first = {n: sum(p.numel() for p in c.parameters()) for n, c in make_agent().components().items()}
    for name, net in pruner.agent.components().items():
        left = sum(p.numel() for p in net.parameters())
        assert metrics[f"prune/sparsity/{name}"] == pytest.approx(1 - left / first[name])
    assert {n: metrics[f"prune/width/{n}"] for n in TWELVE} == w
    assert len(metrics) == 4 + 6 + 12


def test_a_component_without_parameters_has_no_sparsity():
    nets = {"body": nn.Linear(3, 4), "squash": nn.Tanh(), "head": nn.Linear(4, 2)}
    optimizers = [torch.optim.SGD([p for net in nets.values() for p in net.parameters()])]
    agent = Foreign(
        lambda: [nets["head"](nets["squash"](nets["body"](torch.zeros(1, 3))))], optimizers=optimizers, **nets
    )
    schedule = Schedule(kind="cosine", start=200, end=800, events=4, final=0.5)
    metrics = Pruner(agent, PruneConfig(sparsity=0.5), schedule).metrics()
    assert [name for name in metrics if name.startswith("prune/sparsity/")] == [
        "prune/sparsity/body",
        "prune/sparsity/head",
    ]


def test_importance_of_every_group_under_every_criterion():
    pruner = make_pruner()
    assert pruner.importance_metrics() == {}
    for step in range(5):
        learn(pruner, step)
    metrics = pruner.importance_metrics()
    kinds = [
        f"{kind}/{criterion}"
        for kind in ("importance", "importance_normalised")
        for criterion in LOGGED_CRITERIA
    ]
    assert set(metrics) == {f"{kind}/{name}" for kind in kinds for name in TWELVE}
    assert len(metrics) == 2 * 7 * 12
    assert all(np.isfinite(value) and value > 0 for value in metrics.values())
    for criterion in LOGGED_CRITERIA:
        raw, normalised = pruner.tracker.scores(criterion), pruner.tracker.normalised(criterion)
        for name in TWELVE:
            assert metrics[f"importance/{criterion}/{name}"] == float(raw[name].mean())
            assert metrics[f"importance_normalised/{criterion}/{name}"] == float(normalised[name].mean())


def test_reading_changes_nothing():
    pruner = make_pruner(criterion="random")
    run(pruner, stop=400)
    before = deepcopy(pruner.state_dict()), pruner.record()
    pruner.importance_metrics()
    pruner.metrics()
    pruner.check_target()
    after = pruner.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before[0].items())
    assert pruner.record() == before[1]
