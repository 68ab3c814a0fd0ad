"""Mistakes in Python: an exception that names the value and what to choose, before anything is computed."""

import math

import pytest
import torch

from agents.autoencoder import Autoencoder
from agents.autoencoder_config import AutoencoderConfig
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import DEBUG, PlannerConfig, ReplayConfig, TDMPCConfig
from envs import make_env
from tdmpc_prune.pruning.allocation import Curve, allocate
from tdmpc_prune.pruning.config import ImportanceConfig, Limits, PruneConfig
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.importance import ImportanceTracker
from tdmpc_prune.pruning.pruner import Pruner
from tdmpc_prune.pruning.schedule import Schedule
from tdmpc_prune.pruning.size import SizeModel
from tdmpc_prune.pruning.surgery import remove_units


def pruner(**more):
    return Pruner(TDMPC(DEBUG, 4, 1), PruneConfig(), PruneConfig().schedule_over(1000), **more)


def tracker():
    return ImportanceTracker(find_groups(TDMPC(DEBUG, 4, 1)), ImportanceConfig())


def remove(name, *units):
    agent = TDMPC(DEBUG, 4, 1)
    return remove_units(agent, find_groups(agent), {name: torch.tensor(units)})


def removal(kind="uniform", scores=True):
    agent = TDMPC(DEBUG, 4, 1)
    groups = find_groups(agent)
    size = SizeModel(agent.components(), groups)
    given = {group.name: torch.zeros(group.units) for group in groups} if scores else {}
    return allocate(kind, groups, given, size, size.widths, size.parameters(size.widths), 0.5, Limits())


def schedule(**fields):
    return Schedule(**({"start": 0, "end": 10, "events": 2, "final": 0.5} | fields))


MISTAKES = {
    "criterion": (lambda: PruneConfig(criterion="tailor"), "criterion is 'tailor'; choose gradient"),
    "allocation": (lambda: PruneConfig(allocation="equal"), "allocation is 'equal'; choose uniform"),
    "schedule": (lambda: PruneConfig(schedule="cosin"), "schedule is 'cosin'; choose cosine"),
    "compensation": (lambda: PruneConfig(compensation="yes"), "compensation is 'yes'; choose linear, none"),
    "ridge": (lambda: PruneConfig(ridge=math.nan), "ridge is nan; choose 0.0001 to 10000, 0.1 for example"),
    "sparsity": (lambda: PruneConfig(sparsity=math.nan), "sparsity is nan; choose"),
    "half an update": (lambda: PruneConfig(recovery=1.5), "recovery is 1.5; choose a whole number"),
    "updates as a word": (lambda: PruneConfig(recovery="3"), "recovery is '3'; choose a whole number"),
    "no updates at all": (lambda: PruneConfig(recovery=None), "recovery is None; choose a whole number"),
    "half a removal": (lambda: PruneConfig(events=2.5), "events is 2.5; choose a whole number, 1 to 10000"),
    "true removals": (lambda: PruneConfig(events=True), "events is True; choose a whole number"),
    "sparsity as a word": (lambda: PruneConfig(sparsity="0.5"), "sparsity is '0.5'; choose a number"),
    "ridge as a word": (lambda: PruneConfig(ridge="small"), "ridge is 'small'; choose a number"),
    "half a unit": (lambda: Limits(min_units=2.5), "min_units is 2.5; choose a whole number"),
    "coupling as a word": (lambda: Limits(coupling="half"), "coupling is 'half'; choose a number"),
    "components as a word": (lambda: Limits(component="encoder"), "component is 'encoder'; choose names"),
    "components as numbers": (lambda: Limits(component=0.5), "component is 0.5; choose names"),
    "component as a word": (lambda: Limits(component={"q1": "x"}), "component q1 is 'x'; choose"),
    "half a warmup": (lambda: ImportanceConfig(warmup=0.5), "warmup is 0.5; choose a whole number"),
    "guard as a word": (lambda: ImportanceConfig(guard="on"), "guard is 'on'; choose a number"),
    "normalisation": (lambda: ImportanceConfig(normalisation="layer"), "normalisation is 'layer'; choose"),
    "progress": (lambda: tracker().advance(math.nan), "progress is nan; give"),
    "coupling": (lambda: Limits(coupling=math.inf), "coupling is inf; choose"),
    "component": (lambda: Limits(component={"q1": -1}), "component q1 is -1; choose"),
    "start": (lambda: schedule(start=math.nan), "start is nan; choose a whole number"),
    "start as a word": (lambda: schedule(start="0"), "start is '0'; choose a whole number"),
    "half an event": (lambda: schedule(events=1.5), "events is 1.5; choose a whole number"),
    "end": (lambda: schedule(end=0), "end is 0; choose more than start"),
    "final": (lambda: schedule(final=math.nan), "final is nan; choose a sparsity"),
    "kind": (lambda: schedule(kind="x"), "kind is 'x'; choose one of"),
    "losses": (lambda: pruner(losses={}), "losses says not which loss trains"),
    "chosen sparsity": (lambda: pruner().choose(math.nan), "sparsity is nan; choose"),
    "scores": (lambda: tracker().scores("tailor"), "criterion is 'tailor'; choose"),
    "kind of allocation": (lambda: removal("equal"), "allocation is 'equal'; choose one of"),
    "missing scores": (lambda: removal(scores=False), "scores of encoder.0 are missing; give"),
    "unknown group": (lambda: remove("x", 0), "there is no group 'x', only"),
    "unit out of range": (lambda: remove("latent", 99), "latent has 8 units; cannot remove"),
    "all units": (lambda: remove("latent", *range(8)), "latent would lose all of its 8 units"),
    "curve": (lambda: Curve(8, (0, 0.5), (0,), 1.0), "give one drop per share"),
    "curve of NaN": (lambda: Curve(8, (0, 0.5), (0, math.nan), 1.0), "drops are"),
    "task": (lambda: make_env("cartpol-swingup"), "did you mean cartpole-swingup"),
    "seed": (lambda: make_env("cartpole-swingup", seed=-1), "seed must be at least 0, got -1"),
    "action repeat": (lambda: make_env("cartpole-swingup", action_repeat=0), "at least 1, got 0"),
    "render mode": (lambda: make_env("cartpole-swingup", render_mode="human"), "got 'human'"),
    "observations": (lambda: TDMPC(DEBUG, 0, 1), "obs_dim is 0"),
    "actions": (lambda: TDMPC(DEBUG, 4, -1), "action_dim -1"),
    "pixels": (lambda: Autoencoder(AutoencoderConfig(), 0), "input_dim is 0; choose"),
    "half a width": (lambda: TDMPCConfig(latent_dim=2.5), "latent_dim is 2.5; choose a whole number"),
    "width as a word": (lambda: TDMPCConfig(hidden_dim="32"), "hidden_dim is '32'; choose a whole number"),
    "samples": (lambda: PlannerConfig(num_samples=10**12), "num_samples is 1000000000000; choose"),
    "capacity": (lambda: ReplayConfig(capacity=0), "capacity is 0; choose"),
    "code": (lambda: AutoencoderConfig(code_dim=0), "code_dim is 0; choose"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_in_python(case):
    make, said = MISTAKES[case]
    with pytest.raises(ValueError, match=r".") as caught:
        make()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
