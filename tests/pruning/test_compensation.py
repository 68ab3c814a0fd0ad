"""What layers take over from removed units, against numpy's least squares and against units that say the same twice."""

from copy import deepcopy

import numpy as np
import pytest
import torch
from test_groups import Foreign, alone
from test_surgery import SkipsInputs, fingerprint
from torch import nn
from torch.nn import functional as F

from tdmpc_prune.pruning.compensation import Regression, StandIn, lost_columns, stand_ins, taken_over
from tdmpc_prune.pruning.config import ImportanceConfig, PruneConfig
from tdmpc_prune.pruning.groups import TraceError, find_groups
from tdmpc_prune.pruning.pruner import Pruner
from tdmpc_prune.pruning.selection import covariances
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


def keep_indices_of(width, lost):
    return [i for i in range(width) if i not in lost.tolist()]


KEPT = keep_indices_of(6, LOST)


def seen(data) -> Regression:
    """Of the lost inputs from the others, in float32, as networks compute."""
    found, x = Regression(), torch.tensor(data, dtype=torch.float32)
    for part in (x[:1], x[1:8], x[8:]):
        found.add(part[:, KEPT], part[:, LOST])
    return found


def passing_on() -> nn.Sequential:
    """A network whose last layer reads its input, plus 100: ELU leaves everything there as it is."""
    net = nn.Sequential(nn.Linear(6, 6), nn.ELU(), nn.Linear(6, 2))
    with torch.no_grad():
        net[0].weight.copy_(torch.eye(6))
        net[0].bias.fill_(100.0)
    return net


def test_the_fit_is_numpys_regression_with_a_constant(data):
    matrix, constant = seen(data).fit(PLAIN)
    design = np.column_stack([data[:, KEPT], np.ones(len(data))])
    solution = np.linalg.lstsq(design, data[:, LOST.tolist()], rcond=None)[0]
    np.testing.assert_allclose(matrix, solution[:-1].T, atol=1e-5)
    np.testing.assert_allclose(constant, solution[-1], atol=1e-5)


@pytest.mark.parametrize("ridge", [1e-3, 0.1])
def test_the_ridge_is_a_share_of_the_mean_variance(data, ridge):
    matrix, _ = seen(data).fit(ridge)
    centred = data - data.mean(0)
    extra = np.sqrt(ridge * centred[:, KEPT].var(0).mean() * len(data))
    design = np.vstack([centred[:, KEPT], extra * np.eye(4)])
    wanted = np.vstack([centred[:, LOST.tolist()], np.zeros((4, 2))])
    np.testing.assert_allclose(matrix, np.linalg.lstsq(design, wanted, rcond=None)[0].T, atol=1e-5)


def test_a_layers_stand_in_is_of_all_batches_that_it_reads(data):
    net, x = passing_on(), torch.tensor(data, dtype=torch.float32)
    agent = alone(net, inputs=6)

    def forward():
        for part in (x[:1], x[1:7].reshape(2, 3, 6), x[7:]):
            net(part)

    found = stand_ins(agent, find_groups(agent), {"net.0": LOST}, forward, PLAIN)
    assert list(found) == [("net", "2")]
    stand_in = found["net", "2"]
    matrix, constant = seen(data + 100).fit(PLAIN)
    assert stand_in.missing.tolist() == LOST.tolist()
    np.testing.assert_allclose(stand_in.matrix[:, KEPT], matrix, atol=1e-4)
    np.testing.assert_allclose(stand_in.constant, constant, atol=1e-2)
    assert (stand_in.matrix[:, LOST] == 0).all()
    assert not any(module._forward_pre_hooks for module in net)


def test_inputs_that_never_vary_go_into_the_bias():
    found = Regression()
    found.add(torch.tensor([[2.0, 0.5]] * 3), torch.tensor([[-1.0]] * 3))
    matrix, constant = found.fit(RIDGE)
    assert not matrix.any()
    layer = nn.Linear(3, 2)
    taken = taken_over(layer, StandIn(torch.tensor([1]), torch.zeros(1, 3).double(), constant))
    torch.testing.assert_close(taken["bias"], layer.bias - layer.weight[:, 1])
    torch.testing.assert_close(taken["weight"], layer.weight)


def stand_in_of(data) -> StandIn:
    matrix, constant = seen(data).fit(PLAIN)
    wide = torch.zeros(2, 6, dtype=torch.float64)
    wide[:, KEPT] = matrix
    return StandIn(LOST, wide, constant)


def test_no_other_weights_would_err_less(data):
    """The error of what is left is orthogonal to its inputs, and to a constant."""
    layer = nn.Linear(6, 3).double()
    taken = taken_over(layer, stand_in_of(data))
    x = torch.tensor(data)
    error = layer(x) - (x[:, KEPT] @ taken["weight"][:, KEPT].t() + taken["bias"])
    torch.testing.assert_close(error.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[:, KEPT].t() @ error / 500, torch.zeros(4, 3).double(), atol=1e-5, rtol=0)
    cut = layer(x) - (x[:, KEPT] @ layer.weight[:, KEPT].t() + layer.bias)
    assert error.square().mean() < cut.square().mean()


def test_a_layer_without_a_bias_takes_over_what_it_can(data):
    layer = nn.Linear(6, 3, bias=False)
    assert list(taken_over(layer, stand_in_of(data))) == ["weight"]


def test_without_a_bias_it_is_numpys_regression_through_the_origin(data):
    matrix, constant = seen(data).fit(PLAIN, constant=False)
    solution = np.linalg.lstsq(data[:, KEPT], data[:, LOST.tolist()], rcond=None)[0]
    np.testing.assert_allclose(matrix, solution.T, atol=1e-5)
    assert not constant.any()


def test_a_reader_without_a_bias_is_fitted_through_the_origin(data):
    net, x = passing_on(), torch.tensor(data, dtype=torch.float32)
    net[2] = nn.Linear(6, 2, bias=False)
    agent = alone(net, inputs=6)
    found = stand_ins(agent, find_groups(agent), {"net.0": LOST}, lambda: net(x), PLAIN)["net", "2"]
    matrix, _ = seen(data + 100).fit(PLAIN, constant=False)
    np.testing.assert_allclose(found.matrix[:, KEPT], matrix, atol=1e-3)
    assert not found.constant.any()


def test_what_is_nearly_dead_is_no_stand_in_for_what_is_alive():
    """By chance alone it would be one, with weights of dozens."""
    rng = np.random.default_rng(1)
    x, y = (
        torch.tensor(rng.normal(size=(500, n)) * s, dtype=torch.float32) for n, s in ((1, 1e-4), (5, 1.0))
    )
    found = Regression()
    for part in (slice(0, 3), slice(3, 500)):
        found.add(x[part], y[part])
    within = np.var(x.numpy(), axis=0)
    spread = np.var(np.column_stack([x, y]), axis=0).mean()
    across = (x - x.mean(0)).numpy().T @ (y - y.mean(0)).numpy() / 500
    np.testing.assert_allclose(found.fit(RIDGE)[0].T, across / (within + RIDGE * 1e-3 * spread), rtol=1e-4)
    assert found.fit(RIDGE)[0].abs().max() < 0.1


# After a norm


def test_inputs_scaled_over_fewer_units_are_what_a_layer_fits():
    """By hand, of RMSNorm: as below."""
    net, x = nn.Sequential(nn.Linear(3, 6), nn.RMSNorm(6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(400, 3)
    nn.init.uniform_(net[1].weight, 0.5, 2.0)
    agent = alone(net)
    groups, removal = find_groups(agent), {"net.0": LOST}
    with torch.no_grad():
        said = net(x).numpy()
        h = net[0](x)[:, KEPT]
        left = (h / (h.square().mean(-1, keepdim=True) + 1.2e-7).sqrt() * net[1].weight[KEPT]).tanh().numpy()
    remove_units(agent, groups, removal, stand_ins(agent, groups, removal, lambda: net(x), PLAIN))
    design = np.column_stack([left, np.ones(400)])
    solution = np.linalg.lstsq(design, said, rcond=None)[0]
    with torch.no_grad():
        np.testing.assert_allclose(net(x), design @ solution, atol=1e-3)


@pytest.mark.parametrize("layer", [nn.BatchNorm1d(6), nn.PReLU(6)], ids=["batch norm", "slopes"])
def test_what_treats_every_unit_alone_is_taken_as_it_is(layer):
    """By hand: numpy's regression of what all units said on what those that stay say."""
    net, x = nn.Sequential(nn.Linear(3, 6), layer, nn.Tanh(), nn.Linear(6, 2)), torch.randn(400, 3)
    with torch.no_grad():
        net(x)  # batches were seen
        for p in layer.parameters():
            p.uniform_(0.1, 2.0)
        said, left = net.eval()(x).numpy(), net[:3](x)[:, KEPT].numpy()
        net.train()
    agent = alone(net)
    groups, removal = find_groups(agent), {"net.0": LOST}
    statistics = [buffer.clone() for buffer in net.buffers()]
    found = stand_ins(agent, groups, removal, lambda: net(x), PLAIN)
    assert all(map(torch.equal, statistics, net.buffers()))
    remove_units(agent, groups, removal, found)
    design = np.column_stack([left, np.ones(400)])
    solution = np.linalg.lstsq(design, said, rcond=None)[0]
    with torch.no_grad():
        np.testing.assert_allclose(net.eval()(x), design @ solution, atol=1e-3)


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
@pytest.mark.parametrize("layer", [nn.PReLU, lambda: nn.PReLU(6), lambda: nn.BatchNorm1d(6)])
def test_what_treats_units_alone_may_stand_between_a_norm_and_its_reader(norm, layer):
    """By hand: numpy's regression of what it said on what all that stands before it will say, cut."""
    net = nn.Sequential(nn.Linear(3, 6), norm(6), layer(), nn.Tanh(), nn.Linear(6, 2))
    net(x := torch.randn(400, 3))
    agent = alone(net.eval())
    groups, removal = find_groups(agent), {"net.0": LOST}
    with torch.no_grad():
        said, cut = net(x).numpy(), deepcopy(net)
        remove_units(alone(cut), find_groups(alone(cut)), removal)
        left = cut[:4](x).numpy()
        remove_units(agent, groups, removal, stand_ins(agent, groups, removal, lambda: net(x), PLAIN))
    solution = np.linalg.lstsq(np.column_stack([left, np.ones(400)]), said, rcond=None)[0]
    with torch.no_grad():
        np.testing.assert_allclose(net(x), np.column_stack([left, np.ones(400)]) @ solution, atol=2e-3)


@pytest.mark.parametrize("compiled", ["component", "function"])
def test_what_is_compiled_is_listened_to(compiled):
    """Also where it was compiled, and ran, before anybody listened."""
    net, x = nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)), torch.randn(50, 3)
    whole = stand_ins(alone(net), find_groups(alone(net)), {"net.0": LOST}, lambda: net(x), RIDGE)
    run = torch.compile(net, backend="eager")
    with torch.no_grad():
        run(x)
    agent = alone(run if compiled == "component" else net)
    (group,) = find_groups(agent)
    found = stand_ins(agent, [group], {group.name: LOST}, lambda: run(x), RIDGE)
    (one,), (other,) = found.values(), whole.values()
    torch.testing.assert_close(one.matrix, other.matrix)
    assert covariances(agent, [group], lambda: run(x)).keys() == {group.name}


def test_data_that_reach_nobody_are_refused():
    net = normalised()
    agent = alone(net)
    with pytest.raises(ValueError, match=r"forward runs none of the layers that are to take over: net.3$"):
        stand_ins(agent, find_groups(agent), {"net.0": LOST}, lambda: net[0](torch.ones(2, 3)), RIDGE)


def test_statistics_of_targets_stay():
    net = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.Linear(6, 2))
    target, x = deepcopy(net), torch.randn(20, 3)
    agent = Foreign(lambda: [net(torch.zeros(2, 3))], [{"net": target}], net=net)
    stand_ins(agent, find_groups(agent), {"net.0": LOST}, lambda: net(x) - target(x), RIDGE)
    assert torch.equal(target[1].running_mean, torch.zeros(6))
    assert target.training
    assert net[1].training


def normalised(between=nn.Tanh) -> nn.Sequential:
    """A network with a LayerNorm that scales and shifts."""
    net = nn.Sequential(nn.Linear(3, 6), nn.LayerNorm(6), between(), nn.Linear(6, 2))
    with torch.no_grad():
        net[1].weight.uniform_(0.5, 2.0)
        net[1].bias.uniform_(-1.0, 1.0)
    return net


@pytest.mark.parametrize("between", [nn.Tanh, nn.ELU])
def test_inputs_normalised_over_fewer_units_are_what_a_layer_fits(between):
    """By hand: numpy's regression of what it said on what LayerNorm will make of the units that stay."""
    net, x = normalised(between), torch.randn(400, 3)
    agent = alone(net)
    groups, removal = find_groups(agent), {"net.0": LOST}
    with torch.no_grad():
        said = net(x).numpy()
        h = net[0](x)[:, KEPT]
        left = net[2](F.layer_norm(h, (4,), net[1].weight[KEPT], net[1].bias[KEPT])).numpy()
    found = stand_ins(agent, groups, removal, lambda: [net(x[:100]), net(x[100:].view(3, 100, 3))], PLAIN)
    remove_units(agent, groups, removal, found)
    design = np.column_stack([left, np.ones(400)])
    solution = np.linalg.lstsq(design, said, rcond=None)[0]
    with torch.no_grad():
        np.testing.assert_allclose(net(x), design @ solution, atol=1e-3)


def test_modules_may_be_there_twice():
    tanh = nn.Tanh()
    net = nn.Sequential(nn.Linear(3, 5), tanh, nn.Linear(5, 6), nn.LayerNorm(6), tanh, nn.Linear(6, 2))
    found = stand_ins(
        alone(net), find_groups(alone(net)), {"net.2": LOST}, lambda: net(torch.randn(50, 3)), RIDGE
    )
    assert found["net", "5"].missing.tolist() == list(range(6))


def test_what_layer_norm_reads_is_left_as_it_is_while_the_agent_runs():
    net, x = normalised(), torch.randn(50, 3)
    agent = alone(net)
    said, heard = net(x), []
    stand_ins(agent, find_groups(agent), {"net.0": LOST}, lambda: heard.append(net(x)), RIDGE)
    torch.testing.assert_close(heard[0], said, rtol=0, atol=0)
    assert not any(module._forward_pre_hooks for module in net)


def test_nothing_is_dropped_out_while_the_agent_is_watched():
    net = nn.Sequential(nn.Linear(3, 64), nn.LayerNorm(64), nn.Tanh(), nn.Dropout(0.5), nn.Linear(64, 2))
    agent, x = alone(net), torch.randn(500, 3)
    net[2].eval()  # one that does not follow the others
    modes = [module.training for module in net]
    state, before = torch.random.get_rng_state(), net[4].weight.detach().clone()
    groups, removal = find_groups(agent), {"net.0": torch.tensor([7])}
    found = stand_ins(agent, groups, removal, lambda: net(x), RIDGE)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in net] == modes == [True, True, False, True, True]
    remove_units(agent, groups, removal, found)
    kept = [i for i in range(64) if i != 7]
    assert net[4].weight.norm().item() == pytest.approx(before[:, kept].norm().item(), rel=0.05)


def test_what_does_not_come_right_from_layer_norm_is_left_out():
    net, x = normalised(), torch.randn(40, 3)
    agent = alone(net)
    groups, removal = find_groups(agent), {"net.0": LOST}

    def in_parts():
        net[3](torch.randn(9, 6))  # the head alone
        net[:3](x[:5])
        net[3](torch.randn(9, 6))  # the head, on other rows
        net(x[:0])
        net(x)

    [parts], [whole] = (
        stand_ins(agent, groups, removal, forward, RIDGE).values() for forward in (in_parts, lambda: net(x))
    )
    torch.testing.assert_close(parts.matrix, whole.matrix)
    assert stand_ins(agent, groups, removal, lambda: net[3](torch.randn(9, 6)), RIDGE) == {}


class ByHand(nn.Module):
    """LayerNorm is called by code: nobody can know what its units go through."""

    def __init__(self):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(3, 6), nn.LayerNorm(6), nn.Linear(6, 2)

    def forward(self, x):
        return self.down(torch.tanh(self.norm(self.up(x))))


def test_layer_norm_elsewhere_than_right_before_a_layer_is_not_looked_into():
    net = ByHand()
    agent = alone(net)
    found = stand_ins(agent, find_groups(agent), {"net.up": LOST}, lambda: net(torch.randn(50, 3)), RIDGE)
    assert found["net", "down"].missing.tolist() == LOST.tolist()


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
    removal = {"latent": LOST}
    found = stand_ins(tdmpc, groups, removal, lambda: tdmpc.run_on(batch), PLAIN)
    plain = deepcopy(tdmpc)
    remove_units(plain, find_groups(plain), removal)
    remove_units(tdmpc, groups, removal, found)
    left, *now = outputs(tdmpc.model, batch)
    torch.testing.assert_close(left, z[..., keep_indices_of(6, LOST)], atol=1e-3, rtol=1e-3)
    for one, before, cut in zip(now, others, outputs(plain.model, batch)[1:], strict=True):
        torch.testing.assert_close(one, before, atol=1e-3, rtol=1e-3)
        assert (one - before).abs().max() < 0.1 * (cut - before).abs().max()


def test_targets_follow_with_their_own_weights(tdmpc, batch):
    groups = find_groups(tdmpc)
    removal = {"q1.0": torch.tensor([2, 9])}
    found = stand_ins(tdmpc, groups, removal, lambda: tdmpc.run_on(batch), RIDGE)
    reader = tdmpc.target.components()["q1"][3]
    wanted = taken_over(reader, found["q1", "3"])
    online = tdmpc.components()["q1"][3].weight
    assert not torch.equal(online, reader.weight)
    kept = keep_indices_of(16, removal["q1.0"])
    remove_units(tdmpc, groups, removal, found)
    left = tdmpc.target.components()["q1"][3]
    torch.testing.assert_close(left.weight, wanted["weight"][:, kept])
    torch.testing.assert_close(left.bias, wanted["bias"])
    assert not left.weight.requires_grad
    assert not left.bias.requires_grad


def test_optimisers_hold_the_new_biases_with_their_moments(tdmpc, batch):
    groups, removal = find_groups(tdmpc), {"reward.2": torch.tensor([0])}
    found = stand_ins(tdmpc, groups, removal, lambda: tdmpc.run_on(batch), RIDGE)
    old = tdmpc.model.reward[4].bias  # an output's: it loses nothing
    moment = tdmpc.model_optimizer.state[old]["exp_avg"].clone()
    remove_units(tdmpc, groups, removal, found)
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
    groups, removal = find_groups(tdmpc), {"policy.0": torch.tensor([3])}
    found = stand_ins(tdmpc, groups, removal, lambda: tdmpc.run_on(batch), RIDGE)
    before = {name: p.clone() for name, p in tdmpc.model.named_parameters()}
    remove_units(tdmpc, groups, removal, found)
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
    found = stand_ins(tdmpc, groups, removal, lambda: tdmpc.run_on(batch), RIDGE)
    plain = deepcopy(tdmpc)
    remove_units(plain, find_groups(plain), removal)
    remove_units(tdmpc, groups, removal, found)
    errors = [
        sum((one - was).square().mean() for one, was in zip(outputs(m, batch)[1:], before, strict=True))
        for m in (tdmpc.model, plain.model)
    ]
    assert errors[0] < 0.7 * errors[1]


# Where there is nothing to go by


def test_layers_that_are_not_reached_or_read_nan_are_left_out(tdmpc, batch):
    groups = find_groups(tdmpc)
    removal = {g.name: torch.tensor([0]) for g in groups}
    found = stand_ins(tdmpc, groups, removal, lambda: tdmpc.model.encode(batch.obs), RIDGE)
    assert list(found) == [("encoder", "2")]
    broken = batch.obs * torch.nan
    assert stand_ins(tdmpc, groups, removal, lambda: tdmpc.model.encode(broken), RIDGE) == {}
    remove_units(tdmpc, groups, removal, found)  # as if there were none for the others


def test_nothing_is_run_where_nothing_is_lost(tdmpc):
    def never():
        raise AssertionError

    assert stand_ins(tdmpc, find_groups(tdmpc), {}, never, RIDGE) == {}


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
    removal = {"net.up": torch.tensor([1])}
    found = stand_ins(agent, groups, removal, lambda: agent.nets["net"](torch.randn(20, 3)), RIDGE)
    assert found
    before = fingerprint(agent)
    with pytest.raises(TraceError, match="must match the size"):
        remove_units(agent, groups, removal, found)
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
    removal = pruner.choose(0.3)
    assert bool(pruner.stand_ins(removal, lambda: tdmpc.run_on(batch))) == (kind == "linear")
    pruner.prune(100, lambda: tdmpc.run_on(batch))
    remove_units(plain, find_groups(plain), removal)
    bias, cut = (agent.model.reward[4].bias for agent in (tdmpc, plain))
    assert torch.equal(bias, cut) == (kind == "none")
