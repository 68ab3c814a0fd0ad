"""What layers take over from removed units, against numpy's least squares and against units that say the same twice."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from test_groups import alone
from test_surgery import SkipsInputs, fingerprint
from torch import nn

from tdmpc_prune.pruning.compensation import Moments, inputs_of, lost_columns, taken_over
from tdmpc_prune.pruning.config import ImportanceConfig, PruneConfig
from tdmpc_prune.pruning.groups import TraceError, find_groups
from tdmpc_prune.pruning.pruner import Pruner
from tdmpc_prune.pruning.surgery import remove_units

LOST = torch.tensor([1, 4])
RIDGE = 0.1
PLAIN = 1e-9
"""So small a ridge that it is plain least squares."""


@pytest.fixture(autouse=True)
def same_weights():
    torch.manual_seed(0)


@pytest.fixture
def data() -> np.ndarray:
    """Inputs [500, 6] that follow from each other more or less, with means off zero."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)) @ rng.normal(size=(3, 6)) + 0.5 * rng.normal(size=(500, 6))
    return x + rng.normal(size=6)


def moments_of(x: np.ndarray, ridge: float = PLAIN) -> Moments:
    covariance = np.cov(x.T, bias=True)
    return Moments(torch.tensor(x.mean(0)), torch.tensor(covariance), ridge)


def test_moments_are_those_of_all_batches_together(data):
    net = nn.Sequential(nn.Linear(3, 6), nn.ELU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].bias.fill_(100.0)  # so that ELU leaves everything as it is
    x = torch.tensor(data[:, :3], dtype=torch.float32)

    def forward():
        for part in (x[:1], x[1:7].reshape(2, 3, 3), x[7:]):
            net(part)

    found = inputs_of(find_groups(alone(net)), forward, RIDGE)
    assert list(found) == [("net", "2")]
    read = data[:, :3] @ net[0].weight.detach().numpy().T + 100
    np.testing.assert_allclose(found["net", "2"].mean, read.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["net", "2"].covariance, np.cov(read.T, bias=True), rtol=1e-3, atol=1e-4)
    assert not any(module._forward_pre_hooks for module in net)


def test_the_stand_in_is_numpys_regression_with_a_constant(data):
    matrix, constant = moments_of(data).stand_in(LOST)
    kept = [0, 2, 3, 5]
    design = np.column_stack([data[:, kept], np.ones(len(data))])
    solution = np.linalg.lstsq(design, data[:, LOST.tolist()], rcond=None)[0]
    np.testing.assert_allclose(matrix[:, kept], solution[:-1].T, atol=1e-6)
    np.testing.assert_allclose(constant, solution[-1], atol=1e-6)
    assert (matrix[:, LOST] == 0).all()


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_the_ridge_is_a_share_of_the_mean_variance(data, ridge):
    matrix, _ = moments_of(data, ridge).stand_in(LOST)
    kept = [0, 2, 3, 5]
    centred = data - data.mean(0)
    extra = np.sqrt(ridge * centred[:, kept].var(0).mean() * len(data))
    design = np.vstack([centred[:, kept], extra * np.eye(4)])
    wanted = np.vstack([centred[:, LOST.tolist()], np.zeros((4, 2))])
    np.testing.assert_allclose(matrix[:, kept], np.linalg.lstsq(design, wanted, rcond=None)[0].T, atol=1e-9)


def test_inputs_that_never_vary_go_into_the_bias():
    moments = Moments(
        torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64), RIDGE
    )
    layer = nn.Linear(3, 2)
    taken = taken_over(layer, torch.tensor([1]), moments)
    torch.testing.assert_close(taken["bias"], layer.bias - layer.weight[:, 1])
    torch.testing.assert_close(taken["weight"], layer.weight)


def test_no_other_weights_would_err_less(data):
    """The error of what is left is orthogonal to its inputs, and to a constant."""
    layer = nn.Linear(6, 3).double()
    taken = taken_over(layer, LOST, moments_of(data))
    x = torch.tensor(data)
    kept = keep_indices_of(6, LOST)
    error = layer(x) - (x[:, kept] @ taken["weight"][:, kept].t() + taken["bias"])
    torch.testing.assert_close(error.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-7, rtol=0)
    torch.testing.assert_close(x[:, kept].t() @ error / 500, torch.zeros(4, 3).double(), atol=1e-6, rtol=0)
    cut = layer(x) - (x[:, kept] @ layer.weight[:, kept].t() + layer.bias)
    assert error.square().mean() < cut.square().mean()


def keep_indices_of(width, lost):
    return [i for i in range(width) if i not in lost.tolist()]


def test_a_layer_without_a_bias_takes_over_what_it_can(data):
    layer = nn.Linear(6, 3, bias=False)
    assert list(taken_over(layer, LOST, moments_of(data))) == ["weight"]


# In whole agents


def doubled(model, seed=0):
    """Latent units 1 and 4 say 2 times what units 0 and 2 say, less 1, whoever produces them."""
    for component in (model.encoder, model.dynamics):
        last = component[-1]
        with torch.no_grad():
            last.weight[[1, 4]] = 2 * last.weight[[0, 2]]
            last.bias[[1, 4]] = 2 * last.bias[[0, 2]] - 1


def outputs(model, batch):
    with torch.no_grad():
        latents, rewards = model.rollout(model.encode(batch.obs[0]), batch.action)
        z = torch.stack(latents)
        return z, rewards, model.act(z), model.values(z[:-1], batch.action)


def test_latent_units_that_say_nothing_of_their_own_go_unnoticed(tdmpc, batch):
    doubled(tdmpc.model)
    groups = find_groups(tdmpc)
    z, *others = outputs(tdmpc.model, batch)
    inputs = inputs_of(groups, lambda: tdmpc.run_on(batch), PLAIN)
    plain = deepcopy(tdmpc)
    remove_units(plain, find_groups(plain), {"latent": LOST})
    remove_units(tdmpc, groups, {"latent": LOST}, inputs)
    left, *now = outputs(tdmpc.model, batch)
    torch.testing.assert_close(left, z[..., keep_indices_of(6, LOST)], atol=1e-3, rtol=1e-3)
    for one, before, cut in zip(now, others, outputs(plain.model, batch)[1:], strict=True):
        torch.testing.assert_close(one, before, atol=1e-3, rtol=1e-3)
        assert (one - before).abs().max() < 0.1 * (cut - before).abs().max()


def test_targets_follow_with_their_own_weights(tdmpc, batch):
    groups = find_groups(tdmpc)
    inputs = inputs_of(groups, lambda: tdmpc.run_on(batch), RIDGE)
    removal = {"q1.0": torch.tensor([2, 9])}
    reader = tdmpc.target.components()["q1"][3]
    wanted = taken_over(reader, removal["q1.0"], inputs["q1", "3"])
    online = tdmpc.components()["q1"][3].weight
    assert not torch.equal(online, reader.weight)
    kept = keep_indices_of(16, removal["q1.0"])
    remove_units(tdmpc, groups, removal, inputs)
    left = tdmpc.target.components()["q1"][3]
    torch.testing.assert_close(left.weight, wanted["weight"][:, kept])
    torch.testing.assert_close(left.bias, wanted["bias"])
    assert not left.weight.requires_grad
    assert not left.bias.requires_grad


def test_optimisers_hold_the_new_biases_with_their_moments(tdmpc, batch):
    inputs = inputs_of(find_groups(tdmpc), lambda: tdmpc.run_on(batch), RIDGE)
    old = tdmpc.model.reward[4].bias  # an output's: it loses nothing
    moment = tdmpc.model_optimizer.state[old]["exp_avg"].clone()
    remove_units(tdmpc, find_groups(tdmpc), {"reward.2": torch.tensor([0])}, inputs)
    new = tdmpc.model.reward[4].bias
    assert not torch.equal(new, old)
    assert new.requires_grad
    held = [p for group in tdmpc.model_optimizer.param_groups for p in group["params"]]
    assert sum(p is new for p in held) == 1
    assert not any(p is old for p in held)
    torch.testing.assert_close(tdmpc.model_optimizer.state[new]["exp_avg"], moment)
    before = new.detach().clone()
    tdmpc.update(batch)
    assert not torch.equal(tdmpc.model.reward[4].bias, before)


def test_layers_that_lose_nothing_stay_as_they_are(tdmpc, batch):
    inputs = inputs_of(find_groups(tdmpc), lambda: tdmpc.run_on(batch), RIDGE)
    before = {name: p.clone() for name, p in tdmpc.model.named_parameters()}
    remove_units(tdmpc, find_groups(tdmpc), {"policy.0": torch.tensor([3])}, inputs)
    changed = {
        name
        for name, p in tdmpc.model.named_parameters()
        if p.shape != before[name].shape or not torch.equal(p, before[name])
    }
    assert changed == {"policy.0.weight", "policy.0.bias", "policy.2.weight", "policy.2.bias"}


def test_everything_at_once_on_a_network_that_has_learned_is_nearer_to_what_it_was(tdmpc, batch):
    """Removals in all groups, judged by what the agent's planner reads."""
    groups = find_groups(tdmpc)
    removal = {g.name: torch.arange(0, g.units // 3) for g in groups}
    before = outputs(tdmpc.model, batch)[1:]
    inputs = inputs_of(groups, lambda: tdmpc.run_on(batch), RIDGE)
    plain = deepcopy(tdmpc)
    remove_units(plain, find_groups(plain), removal)
    remove_units(tdmpc, groups, removal, inputs)
    errors = [
        sum((one - was).square().mean() for one, was in zip(outputs(m, batch)[1:], before, strict=True))
        for m in (tdmpc.model, plain.model)
    ]
    assert errors[0] < 0.7 * errors[1]


# Where there is nothing to go by


def test_layers_that_are_not_reached_or_read_nan_are_left_out(tdmpc, batch):
    groups = find_groups(tdmpc)
    found = inputs_of(groups, lambda: tdmpc.model.encode(batch.obs), RIDGE)
    assert list(found) == [("encoder", "2")]
    assert inputs_of(groups, lambda: tdmpc.model.encode(batch.obs * torch.nan), RIDGE) == {}
    remove_units(tdmpc, groups, {"reward.0": torch.tensor([0])}, found)  # as if there were none


def test_lost_columns_are_where_the_units_stand(tdmpc):
    groups = find_groups(tdmpc)
    lost = lost_columns(
        groups, {"latent": torch.tensor([5, 0, 5]), "q1.0": torch.tensor([], dtype=torch.long)}
    )
    assert {place: columns.tolist() for place, columns in lost.items()} == {
        (name, "0"): [0, 5] for name in ("dynamics", "reward", "policy", "q1", "q2")
    }


def test_a_removal_that_is_undone_leaves_no_trace_of_it():
    agent = alone(SkipsInputs())
    groups = find_groups(agent)
    inputs = inputs_of(groups, lambda: agent.nets["net"](torch.randn(20, 3)), RIDGE)
    assert inputs
    before = fingerprint(agent)
    with pytest.raises(TraceError, match="must match the size"):
        remove_units(agent, groups, {"net.up": torch.tensor([1])}, inputs)
    assert fingerprint(agent) == before


def test_running_on_data_draws_no_random_numbers_and_changes_nothing(tdmpc, batch):
    state, before = tdmpc.generator.get_state(), fingerprint(tdmpc)
    everything = torch.random.get_rng_state()
    tdmpc.run_on(batch)
    assert torch.equal(tdmpc.generator.get_state(), state)
    assert torch.equal(torch.random.get_rng_state(), everything)
    assert fingerprint(tdmpc) == before


# The pruner


@pytest.mark.parametrize("kind", ["linear", "none"])
def test_the_pruner_compensates_where_it_is_asked_to(tdmpc, batch, kind):
    importance = ImportanceConfig(warmup=1)
    config = PruneConfig(
        criterion="magnitude", sparsity=0.3, compensation=kind, start=0.0, events=1, importance=importance
    )
    pruner = Pruner(tdmpc, config, config.schedule_over(100))
    pruner.tracker.updates = 1
    plain = deepcopy(tdmpc)
    inputs = pruner.inputs(lambda: tdmpc.run_on(batch))
    assert bool(inputs) == (kind == "linear")
    removal = pruner.choose(0.3)
    pruner.prune(100, inputs)
    remove_units(plain, find_groups(plain), removal)
    bias, cut = (agent.model.reward[4].bias for agent in (tdmpc, plain))
    assert torch.equal(bias, cut) == (kind == "none")
