"""What is left after a removal against masks, slices and formulas written out by hand."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_groups import TWELVE, alone
from torch import nn

from tdmpc_prune.pruning import surgery
from tdmpc_prune.pruning.config import PruneConfig
from tdmpc_prune.pruning.groups import TraceError, find_groups
from tdmpc_prune.pruning.pruner import Pruner
from tdmpc_prune.pruning.size import SizeModel
from tdmpc_prune.pruning.surgery import (
    check_optimizers,
    check_removable,
    cut_to,
    keep_indices,
    remove_units,
)

NORMED = ["q1.0", "q2.0"]
EVERY_GROUP = pytest.mark.parametrize("name", TWELVE)


def some(group, seed=0):
    """A third of a group's units, in no order."""
    rng = np.random.default_rng(seed)
    return torch.as_tensor(rng.permutation(group.units)[: max(1, group.units // 3)])


def find(agent, name):
    return next(g for g in find_groups(agent) if g.name == name)


def prune(agent, name, seed=0):
    """Removes a third of a group; returns the group as it was, and the units removed and kept."""
    group = find(agent, name)
    removed = some(group, seed)
    remove_units(agent, find_groups(agent), {name: removed})
    return group, removed, keep_indices(group, removed)


def cuts(groups, removal, component, path):
    """By hand: what stays of a parameter, along its rows and its columns."""
    layer, _, kind = path.rpartition(".")
    stays = {}
    for group in groups:
        for member in group.members:
            if (member.component, member.layer) == (component, layer) and group.name in removal:
                if member.role == "in" and kind == "bias":
                    continue
                dim = int(member.role == "in")
                gone = member.index[removal[group.name]].tolist()
                stays.setdefault(dim, set(range(10_000))).difference_update(gone)
    return stays


def sliced(tensor, stays):
    for dim, indices in stays.items():
        tensor = tensor.index_select(dim, torch.tensor([i for i in range(tensor.shape[dim]) if i in indices]))
    return tensor


def rollout(model, obs, actions):
    """Latent states, rewards, policy means and values of an imagined rollout."""
    z, latents, heads = model.encode(obs), [], []
    for action in actions:
        latents.append(z)
        heads += [model.act(z), model.values(z, action)]
        (_, z), reward = model.rollout(z, action.unsqueeze(0))
        heads.append(reward)
    return torch.stack([*latents, z]), heads


def mask(model, group, removed):
    """Nothing reads these units any more."""
    copy = deepcopy(model)
    with torch.no_grad():
        for m in group.members:
            if m.role == "in":
                copy.components()[m.component].get_submodule(m.layer).weight[:, m.index[removed]] = 0
    return copy


@pytest.fixture
def inputs(batch):
    return batch.obs[0], torch.cat([batch.action, batch.action.flip(1)])  # 6 steps


# The networks


@EVERY_GROUP
@torch.no_grad()
def test_what_is_left_computes_what_the_masked_network_does(name, tdmpc, inputs):
    group = find(tdmpc, name)
    removed = some(group)
    masked = mask(tdmpc.model, group, removed)
    if name in NORMED:  # a norm over fewer units is another function: that of the units that stay
        q, kept = masked.q[NORMED.index(name)], keep_indices(group, removed)
        full = [p.clone() for p in q.parameters()]

        def by_hand(za):
            w, b, scale, shift, w3, b3, w5, b5 = full
            h = za @ w[kept].T + b[kept]
            h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
            h = torch.tanh(h * scale[kept] + shift[kept])
            return nn.functional.elu(h @ w3[:, kept].T + b3) @ w5.T + b5

        q.forward = by_hand
    expected_latents, expected = rollout(masked, *inputs)
    _, _, kept = prune(tdmpc, name)
    latents, heads = rollout(tdmpc.model, *inputs)
    if name == "latent":
        expected_latents = expected_latents[..., kept]
    assert latents.shape[-1] == (len(kept) if name == "latent" else 6)
    torch.testing.assert_close(latents, expected_latents, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(heads, expected, rtol=1e-6, atol=1e-6)


@EVERY_GROUP
@torch.no_grad()
def test_units_that_nobody_reads_can_go_unnoticed(name, tdmpc, inputs):
    group = find(tdmpc, name)
    tdmpc.model.load_state_dict(mask(tdmpc.model, group, some(group)).state_dict())
    _, before = rollout(tdmpc.model, *inputs)
    prune(tdmpc, name)
    _, after = rollout(tdmpc.model, *inputs)
    for a, b in zip(before, after, strict=True):
        if name in NORMED:
            continue  # see above
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    untouched = [a for a, b in zip(before, after, strict=True) if torch.allclose(a, b, atol=1e-6)]
    assert len(untouched) >= 2 / 3 * len(before)  # for a norm all but the values


@EVERY_GROUP
def test_it_plans_and_learns_afterwards(name, tdmpc, batch):
    prune(tdmpc, name)
    planner = tdmpc.make_planner()
    for _ in range(2):  # cold and warm
        action = tdmpc.plan(batch.obs[0].numpy(), planner, 10_000)
        assert action.shape == (5, 2)
        assert np.isfinite(action).all()
    losses, priority = tdmpc.update(batch)
    assert all(torch.isfinite(value) for value in losses.values())
    assert priority.shape == (5,)
    copy = tdmpc.copy_for_acting()
    assert copy.model.architecture() == tdmpc.model.architecture()


@EVERY_GROUP
def test_sizes_follow(name, tdmpc):
    groups = find_groups(tdmpc)
    size = SizeModel(tdmpc.components(), groups)
    removed = some(find(tdmpc, name))
    left = remove_units(tdmpc, groups, {name: removed})
    widths = size.widths | {name: size.widths[name] - len(removed)}
    assert {g.name: g.units for g in left} == widths
    assert [g.name for g in left] == TWELVE
    assert sum(p.numel() for p in tdmpc.model.parameters()) == size.parameters(widths)
    for component, net in tdmpc.components().items():
        assert sum(p.numel() for p in net.parameters()) == size.component_parameters(widths)[component]
    for model in (tdmpc.model, tdmpc.target):
        for module in model.modules():
            if isinstance(module, nn.Linear):
                assert module.weight.shape == (module.out_features, module.in_features)
            if isinstance(module, nn.LayerNorm):
                assert module.weight.shape == module.bias.shape == module.normalized_shape


# Targets and optimisers


@EVERY_GROUP
def test_networks_targets_and_moments_are_cut_at_the_same_indices(name, tdmpc):
    groups = find_groups(tdmpc)
    removal = {name: some(find(tdmpc, name), seed=5)}
    before = {
        (copy, component, path): (p.detach().clone(), p)
        for copy, nets in enumerate((tdmpc.components(), *tdmpc.mirrors()))
        for component, net in nets.items()
        for path, p in net.named_parameters()
    }
    moments = {p: deepcopy(state) for o in tdmpc.optimizers() for p, state in o.state.items()}
    remove_units(tdmpc, groups, removal)
    changed = 0
    for (copy, component, path), (value, former) in before.items():
        stays = cuts(groups, removal, component, path)
        net = (tdmpc.components(), *tdmpc.mirrors())[copy][component]
        now = net.get_parameter(path)
        assert torch.equal(now, sliced(value, stays)), f"{copy} {component}.{path}"
        assert now.requires_grad == (copy == 0)
        assert (now is former) == (not stays)  # what loses nothing is left alone
        changed += bool(stays)
        if copy == 1:
            continue
        optimizer = tdmpc.policy_optimizer if component == "policy" else tdmpc.model_optimizer
        state = optimizer.state[now]
        assert state.keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[key], sliced(moments[former][key], stays))
            assert state[key].abs().sum() > 0
        assert state["step"] == 4  # the updates of the fixture
    assert changed == 2 * sum(len(list(m.slices())) for m in find(tdmpc, name).members)


@EVERY_GROUP
def test_optimisers_hold_the_live_parameters_and_move_them_all(name, tdmpc, batch):
    prune(tdmpc, name)
    policy = list(tdmpc.model.policy.parameters())
    live = {"model": tdmpc.model_parameters(), "policy": policy}
    for optimizer, parameters in zip(tdmpc.optimizers(), live.values(), strict=True):
        held = [p for group in optimizer.param_groups for p in group["params"]]
        assert [id(p) for p in held] == [id(p) for p in parameters]
        assert {id(p) for p in optimizer.state} == {id(p) for p in parameters}  # and no dead one
        assert all(p.grad is None or p.grad.shape == p.shape for p in held)
    before = [p.detach().clone() for p in tdmpc.model.parameters()]
    target = [p.detach().clone() for p in tdmpc.target.parameters()]
    tdmpc.update(batch)
    for old, p in zip(before, tdmpc.model.parameters(), strict=True):
        assert (old != p).any()
    tdmpc.update(batch)  # the target moves at every second update
    assert all((old != p).any() for old, p in zip(target, tdmpc.target.parameters(), strict=True))
    assert not any(p.requires_grad for p in tdmpc.target.parameters())
    assert all(state["step"] == 6 for o in tdmpc.optimizers() for state in o.state.values())


def test_all_groups_at_once_and_again(tdmpc, batch):
    for seed in range(3):
        groups = find_groups(tdmpc)
        size = SizeModel(tdmpc.components(), groups)
        removal = {g.name: some(g, seed) for g in groups}
        left = remove_units(tdmpc, groups, removal)
        assert {g.name: g.units for g in left} == {g.name: g.units - len(removal[g.name]) for g in groups}
        assert sum(p.numel() for p in tdmpc.model.parameters()) == size.parameters(
            {g.name: g.units for g in left}
        )
        assert tdmpc.model.architecture() == tdmpc.target.architecture()
        losses, _ = tdmpc.update(batch)
        assert all(torch.isfinite(value) for value in losses.values())
    assert tdmpc.model.architecture() == {
        "encoder": [4, 3, 2],
        "dynamics": [4, 4, 4, 2],
        "reward": [4, 4, 4, 1],
        "policy": [2, 5, 5, 2],
        "q1": [4, 6, 6, 1],
        "q2": [4, 6, 6, 1],
    }


def test_one_unit_may_be_all_that_is_left(tdmpc, batch):
    removal = {g.name: torch.arange(g.units - 1) for g in find_groups(tdmpc)}
    left = remove_units(tdmpc, find_groups(tdmpc), removal)
    assert {g.units for g in left} == {1}
    assert torch.isfinite(tdmpc.update(batch)[0]["total_loss"])


def test_nothing_to_remove_changes_nothing(tdmpc):
    before = [id(p) for p in tdmpc.model.parameters()]
    for removal in ({}, {"latent": torch.tensor([], dtype=torch.long)}):
        assert len(remove_units(tdmpc, find_groups(tdmpc), removal)) == 12
        assert [id(p) for p in tdmpc.model.parameters()] == before


# Learning with a mask and without the units is the same


@pytest.mark.parametrize("name", [name for name in TWELVE if name not in NORMED])
def test_learning_without_dead_units_is_learning_with_them(name, tdmpc, batch):
    """Units without any weights and moments get no gradient: their removal must not change what follows."""
    group = find(tdmpc, name)
    removed = some(group)
    with torch.no_grad():
        for copy in (tdmpc.components(), *tdmpc.mirrors()):
            for m in group.members:
                layer = copy[m.component].get_submodule(m.layer)
                optimizer = tdmpc.policy_optimizer if m.component == "policy" else tdmpc.model_optimizer
                for key, p, dim in (
                    [("weight", layer.weight, 1)]
                    if m.role == "in"
                    else [("weight", layer.weight, 0), ("bias", layer.bias, 0)]
                ):
                    assert p is getattr(layer, key)
                    p.index_fill_(dim, m.index[removed], 0)
                    for key in ("exp_avg", "exp_avg_sq") if p in optimizer.state else ():
                        optimizer.state[p][key].index_fill_(dim, m.index[removed], 0)
    smaller = deepcopy(tdmpc)
    smaller.generator = torch.Generator().manual_seed(1)
    tdmpc.generator = torch.Generator().manual_seed(1)
    groups = find_groups(tdmpc)
    remove_units(smaller, find_groups(smaller), {name: removed})
    if name == "latent":  # the consistency loss is a mean over latent dimensions, the dead ones included
        left = group.units - len(removed)
        coef = tdmpc.config.consistency_coef * left / group.units
        smaller.config = replace(tdmpc.config, consistency_coef=coef)
    for _ in range(10):
        large, small = tdmpc.update(batch)[0], smaller.update(batch)[0]
        assert small["total_loss"].item() == pytest.approx(large["total_loss"].item(), rel=1e-5)
    for mine, theirs in ((smaller.components(), tdmpc.components()), (*smaller.mirrors(), *tdmpc.mirrors())):
        for component, net in theirs.items():
            for path, p in net.named_parameters():
                expected = sliced(p, cuts(groups, {name: removed}, component, path))
                torch.testing.assert_close(
                    mine[component].get_parameter(path), expected, rtol=1e-5, atol=1e-6
                )


# Refusals


def fingerprint(agent):
    """Identities and values of everything that a surgery may touch."""
    nets = [net for copy in (agent.components(), *agent.mirrors()) for net in copy.values()]
    return (
        [(id(p), p.detach().clone().tolist(), p.requires_grad) for net in nets for p in net.parameters()],
        [
            (m.in_features, m.out_features) if isinstance(m, nn.Linear) else getattr(m, "normalized_shape", 0)
            for net in nets
            for m in net.modules()
        ],
        [[id(p) for g in o.param_groups for p in g["params"]] for o in agent.optimizers()],
        [
            (id(p), key, torch.as_tensor(value).tolist())
            for o in agent.optimizers()
            for p, state in o.state.items()
            for key, value in state.items()
        ],
    )


@pytest.mark.parametrize(
    ("removal", "reason"),
    [
        ({"q3.0": [0]}, "no group 'q3.0', only encoder.0, .*, latent"),
        ({"reward.2": [0], "latent": [6]}, r"latent has 6 units; cannot remove \[6\]"),
        ({"reward.2": [0], "latent": [0, -1]}, r"latent has 6 units; cannot remove \[0, -1\]"),
        ({"reward.2": [0], "encoder.0": list(range(9))}, "encoder.0 would lose all of its 9 units"),
        ({"reward.2": [0], "encoder.0": [*range(9), 0, 1]}, "encoder.0 would lose all of its 9 units"),
    ],
    ids=["unknown", "too high", "negative", "all", "all, some twice"],
)
def test_a_wrong_removal_changes_nothing(removal, reason, tdmpc):
    before = fingerprint(tdmpc)
    tensors = {name: torch.tensor(units) for name, units in removal.items()}
    with pytest.raises(ValueError, match=reason):
        remove_units(tdmpc, find_groups(tdmpc), tensors)
    assert fingerprint(tdmpc) == before


def test_moments_that_nobody_can_cut_are_refused():
    agent = alone(nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2)))
    optimizer = torch.optim.Adafactor(agent.nets["net"].parameters())
    agent._optimizers = [optimizer]
    groups = find_groups(agent)
    agent.nets["net"](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = [p.clone() for p in agent.nets["net"].parameters()]
    with pytest.raises(ValueError, match=r"Adafactor keeps row_var \[4, 1\] of a parameter \[4, 3\]"):
        remove_units(agent, groups, {"net.0": torch.tensor([1])})
    assert all(map(torch.equal, before, agent.nets["net"].parameters()))


def test_a_unit_named_twice_goes_once(tdmpc):
    left = remove_units(tdmpc, find_groups(tdmpc), {"q1.0": torch.tensor([3, 3, 15])})
    assert {g.name: g.units for g in left}["q1.0"] == 14
    assert tdmpc.model.q[0][1].normalized_shape == (14,)


class SkipsInputs(nn.Module):
    """Adds observations to hidden units: their width is fixed, which no trace shows."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(3, 3), nn.LayerNorm(3), nn.Linear(3, 2)

    def forward(self, x):
        return self.down(x + self.norm(self.up(x)))


class Masked(nn.Module):
    """Scales hidden units by a buffer."""

    def __init__(self, inputs=3, hidden=4, outputs=2):
        super().__init__()
        self.up, self.down = nn.Linear(inputs, hidden), nn.Linear(hidden, outputs)
        self.register_buffer("mask", torch.ones(hidden))

    def forward(self, x):
        return self.down(self.up(x) * self.mask)


def test_a_removal_that_leaves_no_working_agent_is_undone():
    agent = alone(SkipsInputs())
    optimizer = torch.optim.Adam(agent.nets["net"].parameters())
    agent.nets["net"](torch.ones(1, 3)).sum().backward()
    optimizer.step()
    agent._optimizers = [optimizer]
    before = fingerprint(agent)
    with pytest.raises(TraceError, match="must match the size"):
        remove_units(agent, find_groups(agent), {"net.up": torch.tensor([1])})
    assert fingerprint(agent) == before
    agent.nets["net"](torch.ones(1, 3))


@pytest.mark.parametrize("net", [SkipsInputs, Masked])
def test_a_width_that_no_trace_shows_is_found_before_anything_is_learned(net):
    agent = alone(net())
    before = fingerprint(agent)
    config = PruneConfig(sparsity=0.2)
    with pytest.raises(
        TraceError,
        match=r"^net.up cannot lose a unit: .* must match the size .* Is the width of net.up written",
    ):
        Pruner(agent, config, config.schedule_over(1000))
    assert fingerprint(agent) == before


def test_a_trial_removal_changes_nothing(tdmpc):
    before = fingerprint(tdmpc)
    check_removable(tdmpc, find_groups(tdmpc))
    assert fingerprint(tdmpc) == before


def test_the_group_that_cannot_lose_a_unit_is_named():
    agent = alone(nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 4), nn.Tanh(), Masked(4, 5), nn.Linear(2, 1)))
    assert [g.name for g in find_groups(agent)] == ["net.0", "net.1", "net.3.up", "net.3.down"]
    with pytest.raises(TraceError, match=r"^net.3.up cannot lose a unit"):
        check_removable(agent, find_groups(agent))


def test_a_fault_of_any_kind_undoes_a_removal(tdmpc, monkeypatch):
    before = fingerprint(tdmpc)
    monkeypatch.setattr(surgery, "find_groups", lambda agent: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        remove_units(tdmpc, find_groups(tdmpc), {"latent": torch.tensor([1])})
    assert fingerprint(tdmpc) == before


def test_mirrors_that_cannot_follow_are_refused():
    agent = alone(nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2)))
    agent._mirrors = [{"net": nn.Sequential(nn.Linear(3, 5), nn.ELU(), nn.Linear(5, 2))}]
    config = PruneConfig(sparsity=0.2)
    with pytest.raises(ValueError, match="gives a net whose parameters are not those of the component"):
        Pruner(agent, config, config.schedule_over(1000))


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.LBFGS])
def test_optimisers_whose_moments_cannot_follow_are_refused_before_they_have_any(kind):
    agent = alone(nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2)))
    agent._optimizers = [kind(agent.nets["net"].parameters())]
    before = fingerprint(agent)
    config = PruneConfig(sparsity=0.2)
    with pytest.raises(ValueError, match=f"^{kind.__name__} keeps .* of a parameter"):
        Pruner(agent, config, config.schedule_over(1000))
    assert fingerprint(agent) == before


@pytest.mark.parametrize("kind", ["SGD", "Adam", "AdamW", "RMSprop", "Adagrad", "NAdam", "RAdam", "Adamax"])
def test_optimisers_whose_moments_can_follow(kind):
    optimizer = getattr(torch.optim, kind)([nn.Parameter(torch.ones(4))])
    optimizer.state["of all"] = torch.ones(3)
    state = torch.get_rng_state()
    check_optimizers([optimizer])
    assert torch.equal(torch.get_rng_state(), state)


@torch.no_grad()
def test_a_new_agent_takes_widths_and_weights_of_a_pruned_one(tdmpc, inputs):
    new = deepcopy(tdmpc)
    for name in ("latent", "q1.0", "policy.2"):
        prune(tdmpc, name)
    widths = {group.name: group.units for group in find_groups(tdmpc)}
    cut_to(new, widths)
    assert new.model.architecture() == tdmpc.model.architecture()
    for ours, theirs in ((new.model, tdmpc.model), (new.target, tdmpc.target)):
        ours.load_state_dict(theirs.state_dict())
    expected, found = rollout(tdmpc.model, *inputs), rollout(new.model, *inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    cut_to(new, widths)  # nothing to do
    for wrong, said in (
        ({"latent": 10_000}, "'latent' is to have 10000 units"),
        ({"x": 1}, "there is no group 'x', only encoder.0, "),
    ):
        with pytest.raises(ValueError, match=said):
            cut_to(new, wrong)
