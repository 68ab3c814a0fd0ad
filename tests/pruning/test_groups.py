"""What belongs together, found by tracing and compared with what is known of the networks."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import PAPER, TDMPCConfig
from tdmpc_prune.pruning.groups import TraceError, find_groups

TWELVE = [
    *("encoder.0", "dynamics.0", "dynamics.2", "reward.0", "reward.2", "policy.0", "policy.2"),
    *("q1.0", "q1.3", "q2.0", "q2.3", "latent"),
]


class Foreign:
    """Any components with any trace, in the shape that pruning asks for."""

    def __init__(self, trace, mirrors=(), optimizers=(), **components):
        self.trace = trace
        self.nets = components
        self._mirrors, self._optimizers = mirrors, optimizers

    def components(self):
        return self.nets

    def mirrors(self):
        return self._mirrors

    def optimizers(self):
        return self._optimizers


def alone(net, inputs=3):
    """An agent of one network."""
    optimizers = [torch.optim.SGD(net.parameters())]
    return Foreign(lambda: [net(torch.zeros(2, inputs))], optimizers=optimizers, net=net)


def places(group):
    return [(m.component, m.layer, m.role) for m in group.members]


# TD-MPC


@pytest.mark.parametrize("config", [TDMPCConfig(), PAPER], ids=["laptop", "paper"])
def test_tdmpc_has_twelve_groups(config):
    groups = find_groups(TDMPC(config, obs_dim=5, action_dim=1))
    assert [g.name for g in groups] == TWELVE
    assert [g.name for g in groups if g.coupling] == ["latent"]
    hidden, encoder, latent = config.hidden_dim, config.encoder_dim, config.latent_dim
    assert [g.units for g in groups] == [encoder, *[hidden] * 10, latent]


@pytest.mark.parametrize("num_q", [2, 3, 5])
def test_every_q_adds_two_groups(num_q):
    groups = find_groups(TDMPC(TDMPCConfig(num_q=num_q), obs_dim=5, action_dim=1))
    qs = [name for i in range(num_q) for name in (f"q{i + 1}.0", f"q{i + 1}.3")]
    assert [g.name for g in groups] == [*TWELVE[:7], *qs, "latent"]
    assert len(groups) == 8 + 2 * num_q
    assert len(groups[-1].members) == 5 + num_q


def test_the_latent_has_seven_members(tdmpc):
    latent = find_groups(tdmpc)[-1]
    assert places(latent) == [
        ("encoder", "2", "out"),
        ("dynamics", "0", "in"),
        ("dynamics", "4", "out"),  # which only the second imagined step reads
        ("reward", "0", "in"),
        ("policy", "0", "in"),
        ("q1", "0", "in"),
        ("q2", "0", "in"),
    ]
    assert latent.components == ("encoder", "dynamics", "reward", "policy", "q1", "q2")
    for member in latent.members:  # the actions come after the latent state, at columns 6 and 7
        assert member.index.tolist() == list(range(6))
        assert member.module is tdmpc.components()[member.component].get_submodule(member.layer)


def test_members_of_the_component_groups(tdmpc):
    groups = find_groups(tdmpc)
    for group in groups[:-1]:
        component, layer = group.name.split(".")
        following = "3" if (component[0], layer) == ("q", "0") else str(int(layer) + 2)
        norm = [(component, "1", "norm")] if following == "3" else []
        assert places(group) == [(component, layer, "out"), *norm, (component, following, "in")]
        assert group.components == (component,)
        assert not group.coupling
        for member in group.members:
            assert member.index.tolist() == list(range(group.units))


def test_units_and_their_parameters_by_hand(tdmpc):
    groups = find_groups(tdmpc)
    assert [g.name for g in groups] == TWELVE
    assert [g.units for g in groups] == [9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 6]
    assert {g.name: g.unit_parameters for g in groups} == {
        "encoder.0": 4 + 1 + 6,  # a row with its bias, and a column
        "dynamics.0": 8 + 1 + 11,
        "dynamics.2": 10 + 1 + 6,
        "reward.0": 8 + 1 + 13,
        "reward.2": 12 + 1 + 1,
        "policy.0": 6 + 1 + 15,
        "policy.2": 14 + 1 + 2,
        "q1.0": 8 + 1 + 2 + 17,  # and the norm's scale and shift
        "q1.3": 16 + 1 + 1,
        "q2.0": 8 + 1 + 2 + 19,
        "q2.3": 18 + 1 + 1,
        "latent": (9 + 1) + (11 + 1) + 10 + 12 + 14 + 16 + 18,
    }


def test_what_meets_the_world_is_in_no_group(tdmpc):
    held = {(m.component, m.layer, m.role): m.index for g in find_groups(tdmpc) for m in g.members}
    assert ("encoder", "0", "in") not in held  # observations
    outputs = [("reward", "4"), ("policy", "4"), ("q1", "5"), ("q2", "5")]
    assert not [place for place in outputs if (*place, "out") in held]
    for component in ("dynamics", "reward", "q1", "q2"):  # actions
        columns = tdmpc.components()[component][0].in_features
        assert columns == 8
        assert held[component, "0", "in"].max() == columns - 3


def test_slices_name_the_parameters_and_the_units_dimension(tdmpc):
    group = next(g for g in find_groups(tdmpc) if g.name == "q1.0")
    row, norm, column = group.members
    q = tdmpc.components()["q1"]
    assert [(name, p is getattr(q[0], name), dim) for name, p, dim in row.slices()] == [
        ("weight", True, 0),
        ("bias", True, 0),
    ]
    assert [(name, p is getattr(q[1], name), dim) for name, p, dim in norm.slices()] == [
        ("weight", True, 0),
        ("bias", True, 0),
    ]
    assert [(name, p is q[3].weight, dim) for name, p, dim in column.slices()] == [("weight", True, 1)]


def test_tracing_leaves_no_trace(tdmpc):
    model = tdmpc.model
    model.train()
    model.reward.eval()
    model.q[0][2].eval()
    model.encoder[0].weight.requires_grad_(False)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.5)

    def everything():
        yield [m.training for m in model.modules()]
        yield [p.requires_grad for p in (*model.parameters(), *tdmpc.target.parameters())]
        yield [p.detach().clone() for p in (*model.parameters(), *tdmpc.target.parameters())]
        yield [p.grad.clone() for p in model.parameters()]
        yield [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()]
        yield [torch.get_rng_state(), tdmpc.generator.get_state()]

    before = list(everything())
    assert len(find_groups(tdmpc)) == 12
    for was, now in zip(before, everything(), strict=True):
        for a, b in zip(was, now, strict=True):
            assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def test_tracing_needs_no_gradients_to_be_on(tdmpc):
    with torch.no_grad():
        assert [g.name for g in find_groups(tdmpc)] == TWELVE
    for copy in (tdmpc.model, tdmpc.target):
        copy.requires_grad_(False)
    assert [g.name for g in find_groups(tdmpc)] == TWELVE  # an agent with frozen parts is the same agent
    assert not any(p.requires_grad for p in tdmpc.model.parameters())


# Other agents


def test_two_couplings_keep_the_names_of_their_producers():
    vision, touch, actor = nn.Linear(3, 4), nn.Sequential(nn.Linear(2, 5)), nn.Linear(9, 1)

    def trace():
        both = torch.cat([vision(torch.zeros(1, 3)), touch(torch.zeros(1, 2))], -1)
        return [actor(both.relu())]

    groups = find_groups(Foreign(trace, vision=vision, touch=touch, actor=actor))
    assert [(g.name, g.units, g.coupling) for g in groups] == [("vision", 4, True), ("touch.0", 5, True)]
    # Each has its own columns of what reads both.
    assert [g.members[-1].index.tolist() for g in groups] == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]


def test_a_residual_stream_is_one_group():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.inputs, self.up, self.down = nn.Linear(3, 6), nn.Linear(6, 8), nn.Linear(8, 6)
            self.outputs = nn.Linear(6, 2)

        def forward(self, x):
            x = self.inputs(x)
            return self.outputs(x + self.down(self.up(x).relu()))

    groups = find_groups(alone(Residual()))
    assert [(g.name, places(g)) for g in groups] == [
        (
            "net.inputs",
            [("net", "inputs", "out"), ("net", "up", "in"), ("net", "down", "out"), ("net", "outputs", "in")],
        ),
        ("net.up", [("net", "up", "out"), ("net", "down", "in")]),
    ]
    assert groups[0].unit_parameters == (3 + 1) + 8 + (8 + 1) + 2


def test_layers_without_a_bias():
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4, bias=False), nn.Linear(4, 2))
    (group,) = find_groups(alone(net))
    assert group.unit_parameters == 3 + 1 + 2


@pytest.mark.parametrize(
    "layer", [nn.LayerNorm(4), nn.RMSNorm(4), nn.BatchNorm1d(4), nn.PReLU(4)], ids=lambda x: type(x).__name__
)
def test_what_has_an_entry_a_unit_is_a_member(layer):
    net = nn.Sequential(nn.Linear(3, 4), layer, nn.ELU(), nn.Linear(4, 2))
    (group,) = find_groups(alone(net))
    assert places(group) == [("net", "0", "out"), ("net", "1", "norm"), ("net", "3", "in")]
    assert group.members[1].index.tolist() == [0, 1, 2, 3]
    own = sum(p.numel() for p in layer.parameters()) // 4
    assert group.unit_parameters == 3 + 1 + own + 2


def test_one_slope_for_all_is_nobodys():
    act = nn.PReLU()
    net = nn.Sequential(nn.Linear(3, 16), act, nn.Linear(16, 8), act, nn.Linear(8, 8), act, nn.Linear(8, 2))
    first, second, third = find_groups(alone(net))
    assert places(first) == [("net", "0", "out"), ("net", "2", "in")]
    assert places(second) == [("net", "2", "out"), ("net", "4", "in")]
    assert places(third) == [("net", "4", "out"), ("net", "6", "in")]
    assert not act._forward_hooks
    (group,) = find_groups(Foreign(lambda: [net[2](act(net[0](torch.ones(2, 3))))], net=net[:3]))
    assert group.units == 16


def test_what_a_layer_has_entries_for_is_not_found_out_later():
    """Two networks' units, one after the other, in one norm; and a norm over more than units."""
    net, other, norm, head = nn.Linear(3, 4), nn.Linear(3, 5), nn.LayerNorm(9), nn.Linear(9, 2)

    def trace():
        return [head(norm(torch.cat([net(torch.ones(2, 3)), other(torch.ones(2, 3))], -1)))]

    with pytest.raises(
        TraceError, match=r"norm has other than an entry for each of 4 units of net: .* before any"
    ):
        find_groups(Foreign(trace, net=net, other=other, norm=norm, head=head))
    for odd in (nn.LayerNorm((1, 6)), nn.RMSNorm((1, 6), elementwise_affine=False)):
        with pytest.raises(TraceError, match="other than an entry for each of 6 units"):
            find_groups(alone(nn.Sequential(nn.Linear(3, 6), nn.Unflatten(0, (2, 1)), odd, nn.Linear(6, 2))))


def test_a_norm_that_is_like_another_one_is_followed_too():
    class Mine(nn.RMSNorm):
        pass

    (group,) = find_groups(alone(nn.Sequential(nn.Linear(3, 6), Mine(6), nn.Linear(6, 2))))
    assert places(group) == [("net", "0", "out"), ("net", "1", "norm"), ("net", "2", "in")]


def test_inputs_by_keyword_are_refused():
    net, head = nn.Linear(3, 4), nn.Linear(4, 2)
    with pytest.raises(TraceError, match="head gets its input by keyword: give it first"):
        find_groups(Foreign(lambda: [head(input=net(torch.ones(1, 3)))], net=net, head=head))


def test_components_may_have_any_name():
    values, dotted = nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 5)), nn.Linear(5, 1)
    nets = {"values": values, "a.b": dotted}
    groups = find_groups(Foreign(lambda: [dotted(values(torch.zeros(1, 3)))], **nets))
    assert [(g.name, g.units) for g in groups] == [("values.0", 4), ("latent", 5)]


# Refusals


class Reversed(nn.Module):
    """Has units change places, which no trace shows."""

    def forward(self, x):
        return x.flip(-1)


class Gate(nn.Module):
    """Lets through what is positive."""

    def forward(self, x):
        return torch.where(x > 0, x, 0.0)


class Detached(nn.Module):
    """Ends the gradients' path."""

    def forward(self, x):
        return x.detach()


class Bare(nn.Module):
    """Scales hidden units by a parameter that is in no layer."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(4, 2)
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x):
        return self.down(self.up(x) * self.scale)


class Twice(nn.Module):
    """Reads the same hidden units in two places."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(3, 4), nn.Linear(8, 2)

    def forward(self, x):
        return self.down(torch.cat([self.up(x)] * 2, -1))


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (nn.Sequential(nn.Linear(3, 4), nn.GroupNorm(2, 4), nn.Linear(4, 2)), "net.1 is a GroupNorm"),
        (
            nn.Sequential(
                *(nn.Linear(3, 4), nn.Unflatten(1, (1, 4)), nn.Conv1d(1, 4, 3)),
                *(nn.Flatten(), nn.Linear(8, 2)),
            ),
            "net.2 is a Conv1d",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), nn.LayerNorm([2, 4]), nn.Linear(4, 2)),
            r"net.1 has other than an entry for each of 4 units of net.0: LayerNorm\(\(2, 4\)",
        ),
        (nn.Sequential(spectral_norm(nn.Linear(3, 4)), nn.Linear(4, 2)), "net.0 is reparametrised"),
        (Bare(), r"net.up meets a bare nn.Parameter \[4\]"),
        (Twice(), "net.down does not follow net.up unit by unit"),
        (
            nn.Sequential(nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(4, 2)),
            r"unit 0 of net.0 reaches net.2 at \[0, 1, 2, ...\], not \[0\]: what comes between them mixes units",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), Reversed(), nn.Linear(4, 2)),
            r"unit 0 of net.0 reaches net.2 at \[3\], not \[0\]: between them units change places",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), Gate(), nn.Linear(4, 2)),
            r"unit 0 of net.0 reaches net.2 at \[\], not \[0\]: .* does not pass it on as a number",
        ),
        (
            nn.Sequential(nn.Linear(3, 4), Detached(), nn.Linear(4, 2)),
            r"leads through net.0 without gradients: no detach",
        ),
        (nn.Sequential(nn.Linear(3, 2), nn.Tanh()), r"nothing to prune: .* leads through net.0 \(Linear\)$"),
        (
            nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(2, 2)),
            r"nothing to prune: .* leads through net.1 \(Conv1d\), net.3 \(Linear\)$",
        ),
        (nn.Linear(4, 2), r"trace\(\) cannot be followed: RuntimeError: mat1 and mat2 shapes"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_pruned_is_refused(net, reason):
    with pytest.raises(TraceError, match=reason):
        find_groups(alone(net))


def test_constants_before_a_network_s_outputs_are_refused():
    """torch-pruning would take the action's columns for the latent state's, without a word."""
    encoder, head = nn.Linear(3, 4), nn.Linear(6, 1)

    def trace(order=1):
        z, action = encoder(torch.zeros(1, 3)), torch.zeros(1, 2)
        return [head(torch.cat([z, action][::order], -1))]

    (latent,) = find_groups(Foreign(trace, encoder=encoder, head=head))
    assert latent.members[-1].index.tolist() == [0, 1, 2, 3]
    with pytest.raises(
        TraceError, match=r"unit 0 of encoder reaches head at \[2\], not \[0\]: .*torch.cat takes units first"
    ):
        find_groups(Foreign(lambda: trace(-1), encoder=encoder, head=head))
    assert not [m for net in (encoder, head) for m in (*net._forward_hooks, *net._forward_pre_hooks)]


@pytest.mark.parametrize("action_first", [True, False])
def test_what_the_trace_returns_goes_to_no_other_layer(action_first):
    """Or the agent would lose dimensions of its action."""
    actor, critic = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Tanh()), nn.Linear(5, 1)

    def trace(constants):
        obs = torch.zeros(1, 3)
        action = actor(obs)
        read = [torch.zeros(1, 2) if constants else action, obs]
        return [action, critic(torch.cat(read if action_first else read[::-1], -1))]

    with pytest.raises(
        TraceError, match=r"returns the units of actor.2, and gives them to critic: .* for its actions"
    ):
        find_groups(Foreign(lambda: trace(False), actor=actor, critic=critic))
    assert [g.name for g in find_groups(Foreign(lambda: trace(True), actor=actor, critic=critic))] == [
        "actor.0"
    ]


def test_a_trace_without_a_batch():
    net = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    assert [g.units for g in find_groups(Foreign(lambda: [net(torch.zeros(3))], net=net))] == [4]


@pytest.mark.parametrize("compiled", ["component", "function", "in place"])
def test_what_is_compiled_is_followed_as_it_was_written(compiled):
    net = nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2))
    run = net
    if compiled == "in place":
        net.compile(backend="eager")
    else:
        run = torch.compile(net, backend="eager")
    held = run if compiled == "component" else net
    (group,) = find_groups(Foreign(lambda: [run(torch.zeros(2, 3))], net=held))
    assert group.units == 4
    assert group.name.endswith(".0")
    torch.testing.assert_close(run(torch.ones(2, 3)), net[2](net[1](net[0](torch.ones(2, 3)))))


def test_running_statistics_stay():
    net = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    find_groups(Foreign(lambda: [net(torch.ones(2, 3))], net=net))
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(m.training for m in net.modules())


def test_a_component_or_a_layer_that_the_trace_leaves_out_is_refused():
    body, head = nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 4)), nn.Linear(4, 1)

    def trace():
        return [body(torch.zeros(1, 3))]

    with pytest.raises(TraceError, match=r"lead through head \(Linear\): every layer"):
        find_groups(Foreign(trace, body=body, head=head))
    body.append(nn.ModuleDict({"aux": nn.Linear(4, 1)}))
    body.forward = lambda x: body[2](body[1](body[0](x)))
    with pytest.raises(TraceError, match=r"lead through body.3.aux \(Linear\): every layer"):
        find_groups(Foreign(trace, body=body))
    memory = nn.GRUCell(3, 4)
    with pytest.raises(TraceError, match="memory is a GRUCell: units of Linear can be removed, with"):
        find_groups(Foreign(lambda: [head(memory(torch.zeros(1, 3)))], memory=memory, head=head))


def test_a_trace_that_raises_leaves_the_agent_as_it_was():
    net = nn.Sequential(nn.Linear(3, 4), nn.ELU(), nn.Linear(4, 2))
    net[0].requires_grad_(False)

    def trace():
        net(torch.zeros(1, 3))
        raise KeyError("camera")

    with pytest.raises(TraceError, match=r"^trace\(\) cannot be followed: KeyError: 'camera'$"):
        find_groups(Foreign(trace, net=net))
    assert all(m.training and not m._forward_hooks for m in net.modules())
    assert [p.requires_grad for p in net.parameters()] == [False, False, True, True]


def test_a_trace_with_random_numbers_takes_none_away():
    net = nn.Sequential(nn.Linear(3, 4), nn.Dropout(), nn.Linear(4, 2))
    before = torch.get_rng_state()
    find_groups(Foreign(lambda: [net(torch.randn(2, 3))], net=net))
    assert torch.equal(torch.get_rng_state(), before)
