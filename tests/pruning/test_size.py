from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from agents.tdmpc.world_model import WorldModel
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.size import SizeModel

# Tracing a model takes tens of milliseconds: few examples, no deadline.
few = settings(deadline=None, max_examples=25)


@dataclass(frozen=True)
class Sizes:
    """Widths of an agent like TD-MPC."""

    obs: int = 3
    action: int = 2
    latent: int = 5
    hidden: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Hidden widths of `encoder`, `dynamics` and any heads."""
    normed: frozenset[str] = frozenset()
    """Components with a LayerNorm after their first layer."""
    bias: bool = True

    def at(self, widths):
        """The same agent at other widths of its groups."""
        hidden = {
            name: tuple(widths[f"{name}.{i}"] for i in positions(len(layers), name in self.normed))
            for name, layers in self.hidden.items()
        }
        return replace(self, latent=widths["latent"], hidden=hidden)


# Laptop sizes of TD-MPC, with two Qs: 12 groups.
TDMPC_SIZES = Sizes(
    obs=5,
    action=1,
    latent=32,
    hidden={"encoder": (128,)} | dict.fromkeys(("dynamics", "reward", "policy", "q1", "q2"), (128, 128)),
    normed=frozenset({"q1", "q2"}),
)


def positions(layers, normed):
    """Positions of the hidden Linear layers in a Sequential."""
    return [2 * i + (normed and i > 0) for i in range(layers)]


class Agent:
    """A pruneable agent: encoder -> latent, dynamics back into it, heads that read it."""

    def __init__(self, sizes):
        self.sizes = sizes
        za = sizes.latent + sizes.action
        ends = {"encoder": (sizes.obs, sizes.latent), "dynamics": (za, sizes.latent)}
        self.nets = {
            name: self._mlp(name, *ends.get(name, (za, 1)), hidden) for name, hidden in sizes.hidden.items()
        }

    def _mlp(self, name, inputs, outputs, hidden):
        layers = []
        for i, (a, b) in enumerate(zip((inputs, *hidden), (*hidden, outputs), strict=True)):
            layers.append(nn.Linear(a, b, bias=self.sizes.bias))
            if i < len(hidden):
                layers += [nn.LayerNorm(b), nn.Tanh()] if i == 0 and name in self.sizes.normed else [nn.ELU()]
        return nn.Sequential(*layers)

    def components(self):
        return self.nets

    def trace(self):
        z, action = self.nets["encoder"](torch.zeros(2, self.sizes.obs)), torch.zeros(2, self.sizes.action)
        outputs = []
        for _ in range(2):
            za = torch.cat([z, action], -1)
            outputs += [net(za) for name, net in self.nets.items() if name not in ("encoder", "dynamics")]
            z = self.nets["dynamics"](za)
        return [*outputs, z.sum(-1)]

    def mirrors(self):
        return []

    def optimizers(self):
        return []


class RealAgent(Agent):
    """The world model of the project's own agent."""

    def __init__(self, architecture):
        self.model = WorldModel(architecture)
        self.nets = self.model.components()
        self.sizes = Sizes(obs=architecture["encoder"][0], action=architecture["policy"][-1])

    def trace(self):
        m, action = self.model, torch.zeros(2, self.sizes.action)
        z, outputs = m.encode(torch.zeros(2, self.sizes.obs)), []
        for _ in range(2):
            (_, following), reward = m.rollout(z, action.unsqueeze(0))
            outputs += [*m.values(z, action), m.policy(z), reward]
            z = following
        return outputs


@st.composite
def all_sizes(draw, least=1, most=9):
    width = st.integers(least, most)
    layers = st.lists(width, max_size=2).map(tuple)
    names = ["encoder", "dynamics", "reward", "q1", "q2"][: draw(st.integers(3, 5))]
    return Sizes(
        obs=draw(st.integers(1, 4)),
        action=draw(st.integers(1, 3)),
        latent=draw(width),
        hidden={name: draw(layers) for name in names},
        normed=draw(st.frozensets(st.sampled_from(names))),
        bias=draw(st.booleans()),
    )


def numel(module):
    return sum(p.numel() for p in module.parameters())


def macs(module):
    return sum(m.weight.numel() for m in module.modules() if isinstance(m, nn.Linear))


def size_of(agent):
    return SizeModel(agent.components(), find_groups(agent))


@few
@given(all_sizes(), st.data())
def test_counts_are_those_of_a_model_rebuilt_at_these_widths(sizes, data):
    size = size_of(Agent(sizes))
    for widths in (size.widths, {name: data.draw(st.integers(1, n)) for name, n in size.widths.items()}):
        rebuilt = Agent(sizes.at(widths)).components()
        assert size.component_parameters(widths) == {name: numel(net) for name, net in rebuilt.items()}
        assert size.parameters(widths) == sum(numel(net) for net in rebuilt.values())
        assert size.macs(widths) == sum(macs(net) for net in rebuilt.values())


def test_by_hand():
    # encoder 3-4-5, dynamics 7-5, head 7-6(norm)-1; the latent is both rows and columns of the dynamics layer
    sizes = Sizes(hidden={"encoder": (4,), "dynamics": (), "q1": (6,)}, normed=frozenset({"q1"}))
    size = size_of(Agent(sizes))
    assert size.widths == {"encoder.0": 4, "q1.0": 6, "latent": 5}
    assert size.component_parameters(size.widths) == {"encoder": 16 + 25, "dynamics": 40, "q1": 48 + 12 + 7}
    assert size.macs(size.widths) == 12 + 20 + 35 + 42 + 6
    fewer = {"encoder.0": 2, "q1.0": 3, "latent": 4}
    assert size.component_parameters(fewer) == {"encoder": 8 + 12, "dynamics": 28, "q1": 21 + 6 + 4}
    assert size.parameters(fewer) == 79
    assert size.macs(fewer) == 6 + 8 + 24 + 18 + 3


def test_many_architectures_in_one_call():
    size = size_of(Agent(TDMPC_SIZES))
    assert len(size.names) == 12
    widths = np.random.default_rng(0).integers(1, 100, (2, 7, 12))
    counts = size.count(widths)
    assert counts.shape == (2, 7)
    assert counts[1, 3] == size.parameters(dict(zip(size.names, widths[1, 3].tolist(), strict=True)))


def test_the_real_world_model():
    def at(hidden, latent):
        net = [latent + 2, hidden, hidden + 1]
        return {"encoder": [4, hidden, latent], "dynamics": [*net, latent], "reward": [*net, 1]} | {
            "policy": [latent, hidden, hidden, 2],
            "q1": [*net, 1],
            "q2": [*net, 1],
        }

    agent = RealAgent(at(20, 10))
    size, smaller = size_of(agent), RealAgent(at(11, 6))
    assert len(size.names) == 12
    assert size.parameters(size.widths) == numel(agent.model)
    widths = size_of(smaller).widths
    assert size.component_parameters(widths) == {n: numel(net) for n, net in smaller.components().items()}


def test_other_modules_are_constants():
    class WithConstant(Agent):
        def __init__(self, sizes):
            super().__init__(sizes)
            self.nets["encoder"].register_parameter("scale", nn.Parameter(torch.ones(7)))

    sizes = Sizes(hidden={"encoder": (4,), "dynamics": (3,)})
    plain, larger = size_of(Agent(sizes)), size_of(WithConstant(sizes))
    for widths in (plain.widths, {"encoder.0": 1, "dynamics.0": 2, "latent": 3}):
        assert larger.parameters(widths) == plain.parameters(widths) + 7
        assert larger.macs(widths) == plain.macs(widths)


def test_tied_layers_are_refused():
    agent = Agent(Sizes(hidden={"encoder": (4,), "dynamics": (), "q1": (6,), "q2": (6,)}))
    groups = find_groups(agent)
    agent.nets["q1"][0].weight = agent.nets["q2"][0].weight
    with pytest.raises(ValueError, match="share or reparametrise"):
        SizeModel(agent.components(), groups)
