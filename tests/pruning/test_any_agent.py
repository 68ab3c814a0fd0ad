"""Agents of any shape: after a removal they compute what they did with their units masked, and nothing else changes."""

from copy import deepcopy

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_groups import Foreign, alone
from test_surgery import cuts, sliced
from torch import nn

from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.layers import UNITWISE, entries
from tdmpc_prune.pruning.size import SizeModel
from tdmpc_prune.pruning.surgery import cut_to, remove_units

ACTIVATIONS = [nn.ELU, nn.ReLU, nn.Tanh]


class Block(nn.Module):
    """x + down(act(up(x)))."""

    def __init__(self, width, hidden, act):
        super().__init__()
        self.up, self.act, self.down = nn.Linear(width, hidden), act(), nn.Linear(hidden, width)

    def forward(self, x):
        return x + self.down(self.act(self.up(x)))


class Norm(nn.Module):
    """A norm over the units of a mask alone, or what treats every unit alone; zero elsewhere. So is a removal."""

    def __init__(self, norm, stays):
        super().__init__()
        self.norm, self.stays = norm, stays

    def forward(self, x):
        if isinstance(self.norm, UNITWISE):
            return self.norm(x) * self.stays
        n, rms = self.stays.sum(), isinstance(self.norm, nn.RMSNorm)
        mean = 0 if rms else (x * self.stays).sum(-1, keepdim=True) / n
        variance = ((x - mean).square() * self.stays).sum(-1, keepdim=True) / n
        eps = torch.finfo(x.dtype).eps if self.norm.eps is None else self.norm.eps
        y = (x - mean) / (variance + eps).sqrt()
        if self.norm.weight is not None:
            y = y * self.norm.weight
        if getattr(self.norm, "bias", None) is not None:
            y = y + self.norm.bias
        return y * self.stays


@st.composite
def networks(draw, inputs, outputs):
    layers, width = [], inputs
    for _ in range(draw(st.integers(0, 2))):
        hidden, act = draw(st.integers(2, 7)), draw(st.sampled_from(ACTIVATIONS))
        layers.append(nn.Linear(width, hidden, bias=draw(st.booleans())))
        affine, bias = draw(st.booleans()), draw(st.booleans())
        entrywise = {
            "none": [],
            "layer": [nn.LayerNorm(hidden, elementwise_affine=affine, bias=bias)],
            "rms": [nn.RMSNorm(hidden, elementwise_affine=affine)],
            "batch": [nn.BatchNorm1d(hidden, affine=affine, track_running_stats=True)],
            "slopes": [nn.PReLU(hidden)],
            "one slope": [nn.PReLU()],
        }
        layers += entrywise[draw(st.sampled_from(list(entrywise)))]
        layers.append(act())
        if draw(st.booleans()):
            layers.append(Block(hidden, draw(st.integers(2, 5)), act))
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, outputs))


@st.composite
def agents(draw):
    """A world model of random networks in float64, maybe residual in time, with a target and moments."""
    seed, latent = draw(st.integers(0, 2**16)), draw(st.integers(2, 6))
    obs, action, residual = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.booleans())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nets = {
            "encoder": draw(networks(obs, latent)),
            "dynamics": draw(networks(latent + action, latent)),
            "critic": draw(networks(latent + action, 1)),
            "actor": draw(networks(latent, 2)),
        }
        for net in nets.values():
            net.double()
            for p in net.parameters():
                nn.init.normal_(p, std=0.5)
    names = draw(st.sets(st.sampled_from(list(nets))))
    mirror = {name: deepcopy(nets[name]).requires_grad_(False) for name in sorted(names)}
    parameters = [p for net in nets.values() for p in net.parameters()]
    kinds = {
        "adam": lambda ps: torch.optim.Adam(ps, lr=1e-3),
        "amsgrad": lambda ps: torch.optim.AdamW(ps, lr=1e-3, amsgrad=True),
        "sgd": lambda ps: torch.optim.SGD(ps, lr=1e-3, momentum=0.9),
    }
    optimizer = kinds[draw(st.sampled_from(list(kinds)))](parameters)

    def run(nets, seed=None, steps=2):
        generator = torch.Generator().manual_seed(seed or 0)

        def noise(width):
            return torch.randn(3, width, generator=generator, dtype=torch.float64)

        z, outputs = nets["encoder"](noise(obs)), []
        for _ in range(steps):
            za = torch.cat([z, noise(action)], -1)
            outputs += [nets["critic"](za), nets["actor"](z)]
            z = nets["dynamics"](za) + (z if residual else 0)
        return outputs

    agent = Foreign(lambda: run(nets), [mirror], [optimizer], **nets)
    agent.run = run
    learn(agent)
    return agent


def learn(agent):
    """One update."""
    (optimizer,) = agent.optimizers()
    optimizer.zero_grad()
    torch.cat(agent.run(agent.nets, seed=1), -1).square().sum().backward()
    optimizer.step()


def masked(agent, groups, removal):
    """A copy of the networks in which nobody reads the units, and norms leave them out."""
    nets = deepcopy(agent.nets)
    stays = {}
    for group in groups:
        for m in group.members if group.name in removal else ():
            layer = nets[m.component].get_submodule(m.layer)
            if m.role == "in":
                layer.weight.data[:, m.index[removal[group.name]]] = 0
            if m.role == "norm":
                keep = stays.setdefault((m.component, m.layer), torch.ones(*entries(layer)))
                keep[m.index[removal[group.name]]] = 0
    for (component, path), keep in stays.items():
        parent, _, name = path.rpartition(".")
        layer = nets[component].get_submodule(path)
        setattr(nets[component].get_submodule(parent), name, Norm(layer, keep.double()))
    return nets


@settings(deadline=None, max_examples=60)
@given(agents(), st.data())
def test_any_agent_computes_what_it_did_with_its_units_masked(agent, data):
    groups = find_groups(agent)
    size = SizeModel(agent.nets, groups)
    removal = {}
    for group in groups:
        units = data.draw(st.sets(st.integers(0, group.units - 1), max_size=group.units - 1))
        removal[group.name] = torch.tensor(sorted(units), dtype=torch.long)
    (optimizer,) = agent.optimizers()
    former = [(name, path, p) for name, net in agent.nets.items() for path, p in net.named_parameters()]
    moments = {p: deepcopy(state) for p, state in optimizer.state.items()}
    mirrors = deepcopy(agent.mirrors()[0])
    for net in agent.nets.values():
        net.eval()  # by what batches had seen, not by these
    with torch.no_grad():
        expected = agent.run(masked(agent, groups, removal), seed=7, steps=4)
    left = remove_units(agent, groups, removal)
    with torch.no_grad():
        outputs = agent.run(agent.nets, seed=7, steps=4)
    for net in agent.nets.values():
        net.train()
    torch.testing.assert_close(outputs, expected, rtol=1e-9, atol=1e-9)
    assert [(g.name, g.units) for g in left] == [(g.name, g.units - len(removal[g.name])) for g in groups]
    assert sum(p.numel() for net in agent.nets.values() for p in net.parameters()) == size.parameters(
        {g.name: g.units for g in left}
    )
    for component, path, p in former:
        stays = cuts(groups, removal, component, path)
        now = agent.nets[component].get_parameter(path)
        assert torch.equal(now, sliced(p, stays))
        for key, value in moments[p].items():
            cut = sliced(value, stays) if getattr(value, "shape", ()) == p.shape else value
            assert torch.equal(torch.as_tensor(optimizer.state[now][key]), torch.as_tensor(cut))
        if component in mirrors:
            copy = agent.mirrors()[0][component].get_parameter(path)
            assert torch.equal(copy, sliced(mirrors[component].get_parameter(path), stays))
            assert not copy.requires_grad
    assert len(optimizer.state) == len(former) == len(optimizer.param_groups[0]["params"])
    learn(agent)
    assert all(torch.isfinite(p).all() for net in agent.nets.values() for p in net.parameters())


def test_statistics_of_a_batch_follow_in_networks_and_targets():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    target = deepcopy(net)
    net(torch.randn(9, 3))
    before = net[1].running_mean.clone(), net[1].running_var.clone()
    agent = Foreign(
        lambda: [net(torch.zeros(2, 3))], [{"net": target}], [torch.optim.SGD(net.parameters())], net=net
    )
    remove_units(agent, find_groups(agent), {"net.0": torch.tensor([0, 2])})
    for found, was in zip((net[1].running_mean, net[1].running_var), before, strict=True):
        assert torch.equal(found, was[[1, 3]])
    assert net[1].num_features == target[1].num_features == 2
    assert set(dict(net.named_buffers())) == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}
    assert torch.equal(target[1].running_var, torch.ones(2))
    new = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    cut_to(Foreign(lambda: [new(torch.zeros(2, 3))], net=new), {"net.0": 2})
    new.load_state_dict(net.state_dict())
    torch.testing.assert_close(new.eval()(torch.ones(2, 3)), net.eval()(torch.ones(2, 3)), rtol=0, atol=0)


def test_a_layer_that_reads_two_groups_loses_the_columns_of_each():
    vision, touch, head = nn.Linear(3, 4), nn.Linear(3, 5), nn.Linear(9 + 2, 1)

    def trace():
        x = torch.zeros(1, 3)
        seen = torch.cat([vision(x), touch(x)], -1)
        return [head(torch.cat([seen, torch.zeros(1, 2)], -1))]

    before = head.weight.detach().clone()
    agent = Foreign(trace, vision=vision, touch=touch, head=head)
    left = remove_units(
        agent, find_groups(agent), {"touch": torch.tensor([0, 3]), "vision": torch.tensor([1])}
    )
    assert torch.equal(head.weight, before[:, [0, 2, 3, 5, 6, 8, 9, 10]])
    assert [g.members[-1].index.tolist() for g in left] == [[0, 1, 2], [3, 4, 5]]


def test_a_layer_shared_with_a_mirror_is_cut_once():
    encoder, head = nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 5)), nn.Linear(5, 2)
    target = deepcopy(head)
    mirrors = [{"encoder": encoder, "head": target}]
    agent = Foreign(lambda: [head(encoder(torch.zeros(1, 3)))], mirrors, encoder=encoder, head=head)
    remove_units(agent, find_groups(agent), {"encoder.0": torch.tensor([0]), "latent": torch.tensor([1, 2])})
    assert (encoder[0].out_features, encoder[2].weight.shape) == (3, (3, 3))
    assert head.weight.shape == target.weight.shape == (2, 3)


def test_frozen_layers_stay_frozen():
    net = nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    agent = alone(net)
    remove_units(agent, find_groups(agent), {"net.0": torch.tensor([2])})
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]
    assert net[0].weight.shape == (3, 3)
