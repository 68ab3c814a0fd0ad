"""Sensitivity: what is cut and what stays whole, changes of the return by hand, and the command."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from moments import HIDDEN, Planted, filled_replay, moment_of, small_agent
from scipy import stats

from tdmpc_prune.analysis import sensitivity as module
from tdmpc_prune.analysis import validity
from tdmpc_prune.analysis.sensitivity import Settings, Spared, lowest, parts, sensitivity, switches
from tdmpc_prune.analysis.statistics import Estimate
from tdmpc_prune.analysis.validity import load_moment
from tdmpc_prune.arguments import parse_training
from tdmpc_prune.cli import main
from tdmpc_prune.commands.sensitivity import _draw
from tdmpc_prune.evaluate import Evaluator
from tdmpc_prune.pruning.compensation import BATCHES, stand_ins
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.surgery import remove_units

CPU = torch.device("cpu")
PARTS = ["encoder", "dynamics", "reward", "policy", "q1", "q2", "latent"]
SETTINGS = Settings(
    shares=(0.25, 0.5), criterion="fisher", compensation="linear", ridge=0.02, episodes=3, batches=2, seed=5
)


def planted(agent):
    """Units are worth more the higher their number; but for the first, which is worth most."""
    scores = {group.name: torch.arange(group.units).float() for group in find_groups(agent)}
    for found in scores.values():
        found[0] = 1e3
    wrong = {name: -found for name, found in scores.items()}
    return Planted({"fisher": scores, "taylor": wrong})


class Widths:
    """In place of episodes: returns that say what is left of the dynamics, and notes on who was evaluated."""

    def __init__(self, task, *, env_seed, episodes, seed, action_repeat):
        self.episodes, self.seed = episodes, seed
        self.agents, self.closed = [], False
        self.__class__.last = self

    def run(self, agent, agent_step):
        self.agents.append(agent)
        width = agent.model.architecture()["dynamics"][1]
        return SimpleNamespace(returns=[float(width), width + 10.0, width**2 / HIDDEN])

    def close(self):
        self.closed = True


@pytest.fixture
def evaluated(monkeypatch):
    monkeypatch.setattr(validity, "Evaluator", Widths)
    return Widths


def test_parts_are_components_and_the_coupling_groups():
    found = parts(find_groups(small_agent()))
    assert [part.name for part in found] == PARTS
    assert [[g.name for g in part.groups] for part in found[:2]] == [
        ["encoder.0"],
        ["dynamics.0", "dynamics.2"],
    ]
    assert [part.units for part in found] == [6, *[2 * HIDDEN] * 5, 5]


def test_the_lowest_go_and_never_all():
    latent = parts(find_groups(small_agent()))[-1]
    scores = {"latent": torch.tensor([3.0, 1.0, 2.0, 1.0, 9.0])}
    assert lowest(latent, 0.4, scores)["latent"].tolist() == [1, 3]
    assert lowest(latent, 0.6, scores)["latent"].tolist() == [1, 3, 2]
    assert lowest(latent, 0.99, scores)["latent"].tolist() == [1, 3, 2, 0]
    assert lowest(latent, 0.05, scores) == {}


def test_one_part_is_cut_and_the_others_are_whole(evaluated):
    agent, ticks = small_agent(), []
    before = {name: value.clone() for name, value in agent.model.state_dict().items()}
    whole, found = sensitivity(
        moment_of(agent, filled_replay(agent), planted(agent)), SETTINGS, lambda: ticks.append(0)
    )
    assert [(one.part.name, one.share) for one in found] == [(name, s) for name in PARTS for s in (0.25, 0.5)]
    assert len(ticks) == 14
    first, *cut = evaluated.last.agents
    assert first is agent
    assert evaluated.last.closed
    assert (evaluated.last.episodes, evaluated.last.seed) == (3, 5)
    dense = agent.model.architecture()
    for one, left in zip(found, cut, strict=True):
        widths = left.model.architecture()
        name, gone = one.part.name, [round(one.share * group.units) for group in one.part.groups]
        assert one.removed == sum(gone)
        changed = [key for key in dense if widths[key] != dense[key]]
        assert changed == (PARTS[:-1] if name == "latent" else [name])
        if name == "latent":
            assert widths["encoder"][-1] == widths["dynamics"][-1] == 5 - gone[0]
        else:
            inner = slice(1, -1)
            assert widths[name][inner] == [a - b for a, b in zip(dense[name][inner], gone, strict=True)]
        sizes = [sum(p.numel() for p in x.model.parameters()) for x in (left, agent)]
        assert one.parameters == sizes[1] - sizes[0] > 0
    assert whole == pytest.approx((HIDDEN + HIDDEN + 10 + HIDDEN) / 3)
    changes = {(one.part.name, one.share): one.change for one in found}
    half = changes["dynamics", 0.5]  # 60 units to 30: returns 60, 70, 60 to 30, 40, 15
    assert half.value == pytest.approx((-30 - 30 - 45) / 3)
    low, high = stats.t.interval(0.95, 2, loc=-35, scale=stats.sem([-30, -30, -45]))
    assert (half.low, half.high) == (pytest.approx(low), pytest.approx(high))
    assert found[3].outcome == pytest.approx((30 + 40 + 15) / 3)
    assert changes["reward", 0.5].value == changes["reward", 0.5].low == 0
    assert all(torch.equal(before[name], value) for name, value in agent.model.state_dict().items())


def test_a_share_that_is_no_unit_removes_none(evaluated):
    agent = small_agent()
    moment = moment_of(agent, filled_replay(agent), planted(agent))
    _, found = sensitivity(moment, Settings(**vars(SETTINGS) | {"shares": (0.05,)}))
    latent = found[-1]
    assert (latent.part.name, latent.removed, latent.parameters) == ("latent", 0, 0)
    assert latent.change.value == 0 < found[1].removed


@pytest.mark.parametrize("kind", ["linear", "none"])
def test_what_is_evaluated_is_what_pruning_would_make(kind, evaluated):
    agent, replay = small_agent(), filled_replay(small_agent())
    moment = moment_of(agent, replay, planted(agent))
    states = (replay.generator.get_state(), agent.generator.get_state())
    sensitivity(moment, Settings(**vars(SETTINGS) | {"compensation": kind, "shares": (0.5,)}))
    assert torch.equal(replay.generator.get_state(), states[0])
    assert torch.equal(agent.generator.get_state(), states[1])
    removal = {f"dynamics.{n}": torch.arange(1, 31) for n in (0, 2)}
    own = torch.Generator().manual_seed(module.seeds(5, 2)[1])
    batches = [replay.sample(agent.config.batch_size, own) for _ in range(BATCHES)]
    taken_over = stand_ins(agent, moment.groups, removal, lambda: [agent.run_on(b) for b in batches], 0.02)
    wanted = agent.copy_for_acting()
    remove_units(wanted, find_groups(wanted), removal, taken_over if kind == "linear" else {})
    left = evaluated.last.agents[2].model.state_dict()
    assert all(torch.equal(left[name], value) for name, value in wanted.model.state_dict().items())


def test_returns_are_those_of_real_episodes(runs):
    """Of a dense run, whose scores come from its replay, and of a pruned one."""
    for name in ("dense", "pruned"):
        path = sorted((runs[name] / "checkpoints").iterdir())[-1]
        moment = load_moment(path, CPU, "auto", seed=0)
        assert moment.source == ("stored" if name == "pruned" else "replay")
        whole, found = sensitivity(moment, Settings(**vars(SETTINGS) | {"shares": (0.5,), "seed": 0}))
        stored = moment.stored
        evaluator = Evaluator(
            stored.task, env_seed=stored.seed, episodes=3, seed=0, action_repeat=stored.action_repeat
        )
        returns = evaluator.run(stored.agent, stored.agent_step).returns
        evaluator.close()
        assert whole == np.mean(returns)
        assert any(one.change.value for one in found)
        assert all(one.outcome == pytest.approx(whole + one.change.value) for one in found)


# The command

QUICK = ["--threads", "1", "--device", "cpu", "--episodes", "2", "--batches", "2"]


def test_json_table_and_picture(runs, tmp_path, capsys):
    arguments = ["sensitivity", str(runs["pruned"]), *QUICK, "--shares", "0.8", "0.3"]
    assert main([*arguments, "--json", "--plot", str(tmp_path / "new" / "picture.png")]) == 0
    out, _ = capsys.readouterr()
    result = json.loads(out)
    assert (result["task"], result["scores"], result["criterion"]) == ("cartpole-swingup", "stored", "taylor")
    assert (result["compensation"], result["ridge"], result["episodes"]) == ("linear", 0.1, 2)
    assert [(one["part"], one["share"]) for one in result["parts"]] == [
        (n, s) for n in PARTS for s in (0.3, 0.8)
    ]
    for one in result["parts"]:
        assert 0 < one["parameters"] < result["parameters"]
        assert 0 < one["removed"] < one["units"]
        assert one["change_low"] <= one["change"] <= one["change_high"]
        assert one["return"] == pytest.approx(result["return"] + one["change"])
    assert (tmp_path / "new" / "picture.png").read_bytes()[:4] == b"\x89PNG"

    assert main([*arguments, "--compensation", "none"]) == 0
    table = capsys.readouterr().out.splitlines()
    header = next(line for line in table if line.startswith("part"))
    assert header.split() == ["part", "units", "of", "all", "parameters", "-0.3", "-0.8"]
    largest = {one["part"]: one["parameters"] / result["parameters"] for one in result["parts"]}
    shown = {
        line.split()[0]: line.split()[2] for line in table if line.split()[:1] and line.split()[0] in PARTS
    }
    assert shown == {name: f"{share:.1%}" for name, share in largest.items()}
    assert [line.split()[0] for line in table if line.split()[:1] and line.split()[0] in PARTS] == PARTS
    assert not any(line.startswith("ridge") for line in table)


class Falling(Widths):
    """Returns that fall with the policy's width: for certain in the first case, by chance in the second."""

    sure = True

    def run(self, agent, agent_step):
        width = agent.model.architecture()["policy"][1] - 7.0
        return SimpleNamespace(
            returns=[-50 + width, -50 + (1.1 if self.sure else -0.5) * width][: self.episodes]
        )


@pytest.mark.parametrize("sure", [True, False])
def test_a_fall_beyond_doubt_is_marked(sure, runs, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(validity, "Evaluator", Falling)
    monkeypatch.setattr(Falling, "sure", sure)
    arguments = ["sensitivity", str(runs["dense"]), *QUICK, "--shares", "0.5"]
    assert main([*arguments, "--plot", str(tmp_path / "negative.svg")]) == 0
    marked = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line.endswith("*")]
    assert marked == (["policy"] if sure else [])
    # Of one episode nothing is certain.
    assert main([*arguments, "--episodes", "1", "--json"]) == 0
    found = {one["part"]: one for one in json.loads(capsys.readouterr().out)["parts"]}
    assert found["policy"]["change"] < 0
    assert found["policy"]["change_low"] is found["policy"]["change_high"] is None


def told(*falls, whole=200.0):
    """What `switches` makes of (part, change, upper end of its interval)."""
    known = {part.name: part for part in parts(find_groups(small_agent()))}
    made = [
        Spared(known[name], share, 1, 1, whole + change, Estimate(change, change - 9, high))
        for name, change, high in falls
        for share in (0.2, 0.4)
    ]
    return switches(whole, made)


def test_switches_spare_what_is_missed_by_a_tenth_and_beyond_doubt():
    falls = [
        ("encoder", -20.0, -1.0),  # a tenth
        ("dynamics", -150.0, -90.0),
        ("reward", -19.0, -1.0),  # less
        ("policy", -60.0, 0.5),  # perhaps by chance
        ("q1", 30.0, 40.0),
    ]
    own = ["--prune.limits.component", "encoder", "0.5", "dynamics", "0.5"]
    assert told(*falls) == own
    assert told(*falls, ("latent", -100.0, -80.0)) == ["--prune.limits.coupling", "0.5", *own]
    assert told(("latent", -100.0, -80.0), *falls[2:]) == ["--prune.limits.coupling", "0.5"]
    assert told(*falls, whole=-200.0) == own
    assert told(*falls[2:]) == []
    assert told(*falls[:2]) == []  # all alike
    assert told(("q1", -100.0, np.nan), ("q2", 0.0, np.nan)) == []  # a single episode


def test_the_command_ends_with_what_to_type(runs, capsys, monkeypatch):
    monkeypatch.setattr(validity, "Evaluator", Falling)
    monkeypatch.setattr(module, "MISSED", 0.01)
    arguments = ["sensitivity", str(runs["dense"]), *QUICK, "--shares", "0.5"]
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["switches"] == ["--prune.limits.component", "policy", "0.5"]
    assert main(arguments) == 0
    *_, heading, line = capsys.readouterr().out.splitlines()
    assert (
        heading
        == "To spare by half what a tenth of the return or more is lost with, say to `tdmpc-prune train`:"
    )
    config = parse_training(["train", "cartpole-swingup", *line.split()])
    assert config.prune.limits.component == {"policy": 0.5}


def test_the_picture_holds_every_return():
    def result(*returns):
        return {
            "task": "x",
            "env_step": 1,
            "return": returns[0],
            "parts": [{"part": "q1", "share": 0.5, "removed": 4, "return": value} for value in returns[1:]],
        }

    for returns in ((-50, -55, -60), (900, 850, 30)):
        low, high = _draw(result(*returns)).axes[0].get_ylim()
        assert low <= min(returns)
        assert high >= max(returns)
        assert low <= 0 or min(returns) < 0


def test_the_same_command_says_the_same(runs, capsys):
    said = []
    for seed in ("3", "3", "4"):
        arguments = ["sensitivity", str(runs["dense"]), *QUICK, "--shares", "0.5", "--json", "--seed", seed]
        assert main(arguments) == 0
        said.append(json.loads(capsys.readouterr().out)["parts"])
    assert said[0] == said[1] != said[2]
