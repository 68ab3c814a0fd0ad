"""Validity: planted importance that must be found again, scores and correlations by hand, and the command."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from moments import HIDDEN, Planted, filled_replay, moment_of, small_agent
from safetensors.torch import load_file, save_file
from scipy import stats

from tdmpc_prune.analysis import validity, validity_report
from tdmpc_prune.analysis.validity import (
    Pairs,
    Settings,
    correlate,
    load_moment,
    measurements,
    random_subset,
    replay_tracker,
    spread,
    validate,
)
from tdmpc_prune.commands.validate import ValidateConfig
from tdmpc_prune.commands.validate import run as run_command
from tdmpc_prune.errors import UserError
from tdmpc_prune.evaluate import Evaluator
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.importance import CRITERIA, GRADIENT_CRITERIA, ImportanceTracker

CPU = torch.device("cpu")
SETTINGS = Settings(batch_size=16, subsets=0, episodes=1, batches=2, seed=0)
QUICK = {"threads": 1, "device": "cpu", "batch_size": 16, "batches": 2, "episodes": 1, "subsets": 0}


# Planted importance


def test_planted_importance_is_found_again():
    """A reward model that is right, of equal units with planted outgoing weights."""
    agent = small_agent()
    scales = torch.linspace(0.1, 3, HIDDEN)[
        torch.randperm(HIDDEN, generator=torch.Generator().manual_seed(3))
    ]
    with torch.no_grad():
        agent.model.reward[2].weight.zero_()
        agent.model.reward[2].bias.fill_(1.0)
        agent.model.reward[4].weight.copy_(scales[None])
        agent.model.reward[4].bias.zero_()
    groups = find_groups(agent)
    scores = {c: {g.name: torch.ones(g.units) for g in groups} for c in CRITERIA}
    uniform = torch.rand(HIDDEN, generator=torch.Generator().manual_seed(4))
    scores["gradient"] |= {"reward.2": scales}
    scores["fisher"] |= {"reward.2": 5 - scales}
    scores["random"] |= {"reward.2": uniform}
    replay = filled_replay(agent, reward=float(scales.sum()))
    found = validate(moment_of(agent, replay, Planted(scores)), SETTINGS)
    measured = next(p for p in found.pairs["loss"] if p.group == "reward.2").measured
    assert np.argsort(measured).tolist() == torch.argsort(scales).tolist()
    by_criterion = {c: v.groups["reward.2"] for c, v in found.validity["loss"].items()}
    gradient, fisher = by_criterion["gradient"], by_criterion["fisher"]
    assert (gradient.low, gradient.value, gradient.high) == pytest.approx((1, 1, 1))
    assert (fisher.low, fisher.value, fisher.high) == pytest.approx((-1, -1, -1))
    assert abs(by_criterion["random"].value) < 0.3
    assert by_criterion["random"].low < 0 < by_criterion["random"].high
    assert np.isnan(by_criterion["taylor"].value)  # all alike: there is no order
    assert found.undisturbed is None


def test_scores_rank_better_than_chance_on_an_agent_that_learned():
    """No claim about a criterion, but a check of the whole: scores and damage are of the same units."""
    agent = small_agent()
    replay = filled_replay(agent)
    for _ in range(30):
        agent.update(replay.sample(9))
    settings = Settings(batch_size=64, subsets=0, episodes=1, batches=30, seed=0)
    found = validate(moment_of(agent, replay), settings).validity["loss"]
    assert found["taylor"].overall.low > 0.2
    assert abs(found["random"].overall.value) < 0.15


# Scores


def test_scores_from_replay_are_mean_gradients():
    """On one batch: `gradient` is the mean of |g| over each unit's rows and columns, from autograd.grad."""
    agent = small_agent()
    replay, groups = filled_replay(agent), find_groups(agent)
    scores = replay_tracker(agent, groups, replay, batches=1, seed=5).scores("gradient")

    noise_seed, batch_seed = validity.seeds(5, 2)
    replay.generator.manual_seed(batch_seed)
    agent.generator.manual_seed(noise_seed)
    batch, config = replay.sample(9), agent.config
    losses, latents = agent.model_losses(batch)
    total = (
        config.consistency_coef * losses.consistency
        + config.reward_coef * losses.reward
        + config.value_coef * losses.value
    )
    model, policy = agent.model_parameters(), list(agent.model.policy.parameters())
    gradients = dict(
        zip(model, torch.autograd.grad((total * batch.weight).mean() / config.horizon, model), strict=True)
    )
    gradients |= zip(policy, torch.autograd.grad(agent.policy_loss(latents), policy), strict=True)
    for group in groups:
        for unit in (0, group.units - 1):
            slices = [
                gradients[p].select(dim, int(m.index[unit])).flatten()
                for m in group.members
                for _, p, dim in m.slices()
            ]
            wanted = float(torch.cat(slices).double().abs().mean())
            assert float(scores[group.name][unit]) == pytest.approx(wanted, rel=1e-5)


def test_scores_from_replay_are_a_mean_over_batches():
    agent = small_agent()
    groups, replay = find_groups(agent), filled_replay(agent)
    found = replay_tracker(agent, groups, replay, batches=40, seed=5)
    noise_seed, batch_seed = validity.seeds(5, 2)
    replay.generator.manual_seed(batch_seed)
    agent.generator.manual_seed(noise_seed)
    singles = []
    for _ in range(40):
        tracker = ImportanceTracker(groups, validity.ImportanceConfig())
        losses, latents = agent.model_losses(batch := replay.sample(9))
        weighted = agent.weighted_loss(losses, batch).mean() / agent.config.horizon
        parameters = agent.model_parameters()
        for p, g in zip(parameters, torch.autograd.grad(weighted, parameters), strict=True):
            p.grad = g
        policy = list(agent.model.policy.parameters())
        for p, g in zip(policy, torch.autograd.grad(agent.policy_loss(latents), policy), strict=True):
            p.grad = g
        tracker.observe([*parameters, *policy])
        tracker.advance(0.0)
        singles.append(tracker.scores("gradient")["latent"])
    wanted = torch.stack(singles).mean(0)
    assert found.scores("gradient")["latent"].tolist() == pytest.approx(wanted.tolist(), rel=0.01)


def test_scoring_and_measuring_change_nothing():
    agent = small_agent()
    replay = filled_replay(agent)
    agent.update(replay.sample(9))  # moments and gradients are there
    networks = {"online": agent.model, "target": agent.target}
    before = {n: {k: v.clone() for k, v in net.state_dict().items()} for n, net in networks.items()}
    gradients = {n: p.grad.clone() for n, p in agent.model.named_parameters()}
    random = [agent.generator.get_state(), replay.generator.get_state()]
    moments = [str(o.state_dict()) for o in agent.optimizers()]
    validate(moment_of(agent, replay), SETTINGS)
    for name, network in networks.items():
        assert all(torch.equal(v, before[name][k]) for k, v in network.state_dict().items())
    assert all(torch.equal(p.grad, gradients[n]) for n, p in agent.model.named_parameters())
    assert [p.requires_grad for p in agent.target.parameters()] == [False] * len(
        list(agent.target.parameters())
    )
    assert torch.equal(agent.generator.get_state(), random[0])
    assert torch.equal(replay.generator.get_state(), random[1])
    assert [str(o.state_dict()) for o in agent.optimizers()] == moments


def test_stored_scores_are_the_runs_own(runs):
    path = sorted((runs["pruned"] / "checkpoints").iterdir())[-1]
    tensors = load_file(path / "training.safetensors")
    wanted = tensors["pruner.averages.raw"][0] / (1 - tensors["pruner.averages.start"])
    moment = load_moment(path, CPU, "auto", seed=0)
    assert moment.source == "stored"
    assert torch.equal(torch.cat(list(moment.tracker.scores("gradient").values())), wanted)
    first, again = (load_moment(path, CPU, "auto", seed=s).tracker.scores("random") for s in (1, 1))
    other = load_moment(path, CPU, "auto", seed=2).tracker.scores("random")
    assert torch.equal(first["latent"], again["latent"])
    assert not torch.equal(first["latent"], other["latent"])


def test_where_scores_come_from(runs):
    cold, *_, warm = sorted((runs["pruned"] / "checkpoints").iterdir())
    dense = sorted((runs["dense"] / "checkpoints").iterdir())[-1]
    assert [load_moment(p, CPU, "auto", seed=0).source for p in (cold, warm, dense)] == [
        *("replay", "stored", "replay"),
    ]
    assert load_moment(warm, CPU, "replay", seed=0).source == "replay"


# Removals


def test_subset_is_a_random_half_of_the_units():
    rng = np.random.default_rng(0)
    subsets = [random_subset(100, rng) for _ in range(300)]
    assert all(len(s.unique()) == 50 and s.min() >= 0 and s.max() < 100 for s in subsets)
    # Every unit has its turn, as often as any other.
    turns = torch.cat(subsets).bincount(minlength=100).numpy()
    assert turns.mean() == 150
    assert np.abs(turns - 150).max() < 5 * np.sqrt(300 * 0.25)
    assert {len(random_subset(2, rng)) for _ in range(50)} == {1}


class Counted:
    """A return damage that takes no episodes: the squared numbers of the units that went."""

    seen: ClassVar[list] = []
    undisturbed = 12.5

    def __init__(self, agent, evaluator, agent_step):
        self.seen.clear()
        self.seen.append((evaluator.episodes, evaluator.seed, agent_step))

    def of(self, group, units):
        self.seen.append((group.name, units))
        return float((units**2).sum())


@pytest.fixture
def counted(monkeypatch):
    monkeypatch.setattr(validity, "ReturnDamage", Counted)
    return Counted.seen


def test_subsets_prediction_is_the_sum_of_scores(counted):
    agent = small_agent()
    scores = {c: {g.name: torch.arange(g.units) + 0.5 for g in find_groups(agent)} for c in CRITERIA}
    moment = moment_of(agent, filled_replay(agent), Planted(scores))
    settings = Settings(batch_size=4, subsets=5, episodes=2, batches=1, seed=6)
    ticks = []
    found = validate(moment, settings, lambda: ticks.append(0))
    assert found.undisturbed == 12.5
    assert len(ticks) == measurements(moment, settings) == 10 * HIDDEN + 6 + 5 + 5 * 12
    first, *seen = counted
    assert first == (2, 6, 0)
    assert len(seen) == 5 * 12
    for number, pair in enumerate(found.pairs["return"]):
        own = seen[5 * number : 5 * number + 5]
        assert {name for name, _ in own} == {pair.group}
        assert pair.measured.tolist() == [int((units**2).sum()) for _, units in own]
        wanted = [sum(int(u) + 0.5 for u in units) for _, units in own]
        assert pair.predicted["taylor"].tolist() == wanted


def test_return_is_measured_by_real_episodes(runs):
    path = sorted((runs["pruned"] / "checkpoints").iterdir())[-1]
    moment = load_moment(path, CPU, "auto", seed=0)
    moment = replace(moment, groups=[g for g in moment.groups if g.name == "encoder.0"])
    found = validate(moment, replace(SETTINGS, subsets=3))
    stored = moment.stored
    evaluator = Evaluator(
        stored.task, env_seed=stored.seed, episodes=1, seed=0, action_repeat=stored.action_repeat
    )
    assert found.undisturbed == evaluator.run(stored.agent, stored.agent_step).mean
    evaluator.close()
    assert [len(p.measured) for p in found.pairs["return"]] == [3]
    assert found.pairs["return"][0].measured.any()


# Agreement


def pairs_of(name, component, predicted, measured):
    return Pairs(name, component, {"taylor": np.array(predicted, float)}, np.array(measured, float))


def test_correlations_and_intervals_are_scipys():
    rng = np.random.default_rng(1)
    x = rng.integers(0, 9, 50)  # with ties
    y = x + rng.normal(scale=3, size=50)
    found = correlate([pairs_of("a.0", "a", x, y)], seed=0, resamples=4000)["taylor"].groups["a.0"]
    assert found.value == pytest.approx(stats.spearmanr(x, y).statistic, abs=1e-12)
    interval = stats.bootstrap(
        (x, y),
        lambda a, b: stats.spearmanr(a, b).statistic,
        paired=True,
        vectorized=False,
        n_resamples=2000,
        method="percentile",
        rng=1,
    ).confidence_interval
    assert found.low == pytest.approx(interval.low, abs=0.03)
    assert found.high == pytest.approx(interval.high, abs=0.03)


def test_means_over_groups_by_hand():
    """Correlations 1, 0.5, -1 and undefined; the coupling group stands alone."""
    pairs = [
        pairs_of("a.0", "a", [1, 2, 3], [4, 5, 9]),
        pairs_of("a.2", "a", [1, 2, 3], [1, 3, 2]),
        pairs_of("b.0", "b", [2, 2, 2], [1, 3, 2]),
        pairs_of("b.2", "b", [1, 2], [1, 3]),
        pairs_of("latent", "latent", [1, 2, 3, 4], [9, 7, 5, 3]),
    ]
    found = correlate(pairs, seed=0)["taylor"]
    values = {name: estimate.value for name, estimate in found.groups.items()}
    assert values == pytest.approx(
        {"a.0": 1, "a.2": 0.5, "b.0": np.nan, "b.2": np.nan, "latent": -1}, nan_ok=True
    )
    components = {name: estimate.value for name, estimate in found.components.items()}
    assert components == pytest.approx({"a": 0.75, "b": np.nan, "latent": -1}, nan_ok=True)
    assert found.overall.value == pytest.approx((1 + 0.5 - 1) / 3)
    assert found.overall.low <= found.overall.value <= found.overall.high


def test_overall_interval_is_over_removals():
    """Two groups of perfect order leave no doubt, whatever groups there might have been."""
    up, down = [1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1]
    overall = correlate([pairs_of("a", "a", up, up), pairs_of("b", "b", up, down)], seed=0)["taylor"].overall
    assert (overall.low, overall.value, overall.high) == pytest.approx((0, 0, 0))
    rng = np.random.default_rng(2)
    noisy = [pairs_of(str(i), str(i), rng.normal(size=30), rng.normal(size=30)) for i in range(9)]
    found = correlate(noisy, seed=0)["taylor"]
    single = np.mean([e.high - e.low for e in found.groups.values()])
    assert found.overall.high - found.overall.low == pytest.approx(single / 3, rel=0.25)


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(1, [9]), (2, [4, 9]), (3, [2, 6, 9]), (10, list(range(10))), (99, list(range(10)))],
)
def test_moments_are_spread_and_end_with_the_newest(count, wanted):
    paths = [Path(str(i)) for i in range(10)]
    assert spread(paths, count) == [paths[i] for i in wanted]


# The command


def command(path, **settings):
    return run_command(ValidateConfig(run=path, **QUICK | settings))


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_and_files(runs, tmp_path, capsys, counted):
    assert command(runs["pruned"], json=True, subsets=3, moments=2, out=tmp_path / "a" / "b") == 0
    out, err = capsys.readouterr()
    result = strict(out)
    assert err == ""
    assert len(out.splitlines()) == 1
    steps = [m["env_step"] for m in result["moments"]]
    assert steps == [2000, 4000]
    last = result["moments"][-1]
    assert last["scores"] == "stored"
    assert set(last["damage"]) == {"loss", "return"}
    for kind in ("loss", "return"):
        by_criterion = last["damage"][kind]
        assert list(by_criterion) == list(CRITERIA)
        taylor = by_criterion["taylor"]
        assert list(taylor["components"]) == [
            *("encoder", "dynamics", "reward", "policy", "q1", "q2"),
            "latent",
        ]
        assert taylor["groups"]["latent"] == taylor["components"]["latent"]
        both = [taylor["groups"][f"dynamics.{i}"]["rho"] for i in (0, 2)]
        defined = [rho for rho in both if rho is not None]
        assert taylor["components"]["dynamics"]["rho"] == pytest.approx(np.mean(defined))
        overall = {name: found["overall"]["rho"] for name, found in by_criterion.items()}
        worse = [name for name in GRADIENT_CRITERIA if overall[name] < overall["magnitude"]]
        assert last["below_magnitude"][kind] == worse
    with (tmp_path / "a" / "b" / "validity.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 2 * len(CRITERIA) * 12
    row = next(
        r
        for r in rows
        if (r["env_step"], r["damage"], r["criterion"], r["group"]) == ("4000", "loss", "taylor", "latent")
    )
    assert float(row["rho"]) == last["damage"]["loss"]["taylor"]["groups"]["latent"]["rho"]
    assert row["component"] == "latent"
    pictures = sorted(p.name for p in (tmp_path / "a" / "b").glob("*.png"))
    kinds = ("loss_damage", "return_damage")
    assert pictures == [f"{kind}_{m['checkpoint']}.png" for kind in kinds for m in result["moments"]]


def test_undefined_is_null(runs, tmp_path, capsys, monkeypatch):
    """No damage anywhere: no order, no correlation."""
    monkeypatch.setattr(validity.LossDamage, "of", lambda self, group, units: 0.0)
    assert command(runs["dense"], json=True, moments=1, out=tmp_path) == 0
    (moment,) = strict(capsys.readouterr().out)["moments"]
    loss = moment["damage"]["loss"]
    assert loss["taylor"]["overall"] == {"rho": None, "low": None, "high": None}
    assert moment["below_magnitude"] == {"loss": []}
    with (tmp_path / "validity.csv").open() as file:
        assert {row["rho"] for row in csv.DictReader(file)} == {""}


def test_tables(runs, capsys):
    assert command(runs["pruned"], moments=1) == 0
    out = capsys.readouterr().out
    assert "env step 4,000, loss damage" in out
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert lines["criterion"][1:] == [
        *("overall", "low", "high", "encoder", "dynamics", "reward", "policy", "q1", "q2", "latent"),
    ]
    assert set(CRITERIA) <= set(lines)
    assert "return damage" not in out
    assert "gradient is the paper's" in out


def test_criteria_that_rank_below_magnitude_are_named(runs, capsys, monkeypatch):
    overall = dict.fromkeys(CRITERIA, 0.5) | {
        "magnitude": 0.4,
        "random": 0.1,
        "fisher": 0.3,
        "taylor": np.nan,
    }
    below = validity_report._below_magnitude(overall)
    assert below == ["fisher"]
    monkeypatch.setattr(validity_report, "_below_magnitude", lambda overall: below)
    assert command(runs["dense"], moments=1) == 0
    assert "Ranks worse than magnitude here: fisher\n" in capsys.readouterr().out


def test_same_seed_same_result(runs, capsys):
    results = []
    for seed in (3, 3, 4):
        command(runs["dense"], json=True, moments=1, seed=seed)
        results.append(strict(capsys.readouterr().out)["moments"])
    assert results[0] == results[1] != results[2]


def test_fewer_checkpoints_than_asked(runs, capsys):
    assert command(runs["pruned"], json=True, moments=9) == 0
    out, err = capsys.readouterr()
    assert len(strict(out)["moments"]) == 4
    assert len(err.splitlines()) == 1
    assert "holds 4 of 9 checkpoints" in err
    assert "--keep-every" in err


def test_one_checkpoint(runs, capsys):
    path = sorted((runs["pruned"] / "checkpoints").iterdir())[1]
    assert command(path, json=True) == 0
    out, err = capsys.readouterr()
    assert [m["checkpoint"] for m in strict(out)["moments"]] == [path.name]
    assert err == ""


def edit_state(folder, **changes):
    file = folder / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def no_priorities(folder):
    file = folder / "training.safetensors"
    tensors = load_file(file)
    tensors["replay.priority"].zero_()
    save_file(tensors, file)


def other_tracker(folder):
    file = folder / "training.safetensors"
    tensors = load_file(file)
    tensors["pruner.averages.raw"] = torch.zeros(4, 3, dtype=torch.float64)
    save_file(tensors, file)


DAMAGE = {
    "autoencoder": (lambda f: edit_state(f, task="autoencoder"), "holds an autoencoder"),
    "other format": (lambda f: edit_state(f, schema=99), "its format is 99"),
    "no training tensors": (lambda f: (f / "training.safetensors").unlink(), "cannot be loaded"),
    "cut off": (lambda f: (f / "training.safetensors").write_bytes(b"12"), "cannot be loaded"),
    "replay not ready": (no_priorities, "no sequence in its replay"),
    "foreign tracker": (other_tracker, "the state is of 3 units"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_checkpoints_that_are_refused(runs, tmp_path, name):
    damage, words = DAMAGE[name]
    shutil.copytree(runs["pruned"], tmp_path / "run")
    damage(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1])
    with pytest.raises(UserError, match=words) as refusal:
        command(tmp_path / "run", out=tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_folders_that_are_refused(runs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="no run folder with a checkpoint"):
        command(tmp_path)
    with pytest.raises(UserError, match="no run folder with a checkpoint"):
        command(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"stores no scores.*--scores replay"):
        command(runs["dense"], scores="stored")
    with pytest.raises(UserError, match=r"--out .*cannot write there"):
        command(runs["dense"], out=tmp_path / "file")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"moments": 0}, "moments is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batches": -1}, "batches is -1"),
        ({"episodes": 0}, "episodes is 0"),
        ({"subsets": -1}, "subsets is -1"),
        ({"subsets": 2}, "3 or more"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_settings_that_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        ValidateConfig(run=Path("x"), **settings)
