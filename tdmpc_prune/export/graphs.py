"""Controllers as ONNX graphs: plain operators, unrolled loops, the weights inside."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from agents.tdmpc.agent import TDMPC
from agents.tdmpc.planner import Planner
from agents.tdmpc.world_model import WorldModel

OPSET = 20
"""Of the operators: ONNX Runtime 1.17 and newer know it."""


class PolicyGraph(nn.Module):
    """The policy alone: observation [1, O] -> action [1, A]."""

    INPUTS = ("observation",)
    OUTPUTS = ("action",)

    def __init__(self, agent: TDMPC) -> None:
        super().__init__()
        self.model = agent.model
        self.obs_dim = agent.obs_dim

    def forward(self, observation: Tensor) -> tuple[Tensor]:
        """Action [1, A], without noise."""
        return (self.model.act(self.model.encode(observation)),)

    def networks(self) -> list[nn.Module]:
        """What of the model is inside."""
        return [self.model.encoder, self.model.policy]

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the right shapes."""
        return (torch.zeros(1, self.obs_dim),)


class PlannerGraph(nn.Module):
    """The whole planner: observation [1, O], mean [1, H, A], noise [1, K] -> action [1, A], next_mean [1, H, A].

    All that a control step depends on goes in, and all that the next one needs comes out: `next_mean` is
    shifted by one step already. From an observation that is not finite comes an action that is none (NaN), as of the
    policy, and `mean` as it was: the planner's search would end at some action that looks like any other.
    """

    INPUTS = ("observation", "mean", "noise")
    OUTPUTS = ("action", "next_mean")

    def __init__(self, agent: TDMPC, agent_step: int) -> None:
        """The planner of an agent, with the horizon and the spread of this point of its schedules."""
        super().__init__()
        self.agent = agent
        self.model = agent.model
        self.planner = agent.make_planner()
        self.horizon = agent.config.horizon_at(agent_step)
        self.min_std = agent.config.std_at(agent_step)
        self.noise_size = self.planner.noise_size(self.horizon)

    def forward(self, observation: Tensor, mean: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Action [1, A], and the mean [1, H, A] that the next step begins with."""
        return self.step(self.model, self.planner, observation, mean, noise)

    def step(
        self, model: WorldModel, planner: Planner, observation: Tensor, mean: Tensor, noise: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The same with another model and planner, for example of another precision."""
        action, plan = planner.step(
            model.encode(observation), mean, planner.noise(noise, self.horizon), min_std=self.min_std
        )
        # Not torch.zeros: with a horizon of 1 the output would be a constant, which ONNX does not allow.
        shifted = torch.cat([plan[:, 1:], 0 * plan[:, :1]], dim=1)
        finite = observation.isfinite().all(dim=1, keepdim=True)
        return torch.where(finite, action, torch.nan), torch.where(finite.unsqueeze(2), shifted, mean)

    def networks(self) -> list[nn.Module]:
        """What of the model is inside."""
        return [self.model]

    def example(self) -> tuple[Tensor, ...]:
        """Inputs of the right shapes: a first step."""
        mean = torch.zeros(1, self.horizon, self.agent.action_dim)
        return torch.zeros(1, self.agent.obs_dim), mean, torch.zeros(1, self.noise_size)


Graph = PolicyGraph | PlannerGraph


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """The graph of a controller, complete and checked for being valid ONNX."""
    with _silence(), torch.no_grad():
        program = torch.onnx.export(
            graph.eval(),
            graph.example(),
            dynamo=True,
            opset_version=OPSET,
            input_names=graph.INPUTS,
            output_names=graph.OUTPUTS,
            verbose=False,
        )
        assert program is not None
        model = program.model_proto
    _spell_out_elu(model.graph)
    _share_weights(model.graph)
    _strip(model)
    onnx.checker.check_model(model, full_check=True)
    domains = {node.domain for node in model.graph.node}
    assert domains == {""}, domains
    return model


def _spell_out_elu(graph: onnx.GraphProto) -> None:
    """Puts max(x, exp(min(x, 0)) - 1) in the place of every Elu, on which ONNX Runtime spends up to half of a plan.

    Its Exp is written for the processor's vectors, its Elu is not: together the four take a third to a half as long.
    """
    named = {value: f"elu_{value:.0f}" for value in (0.0, 1.0)}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "Elu" or any(it.name == "alpha" and it.f != 1 for it in node.attribute):
            nodes.append(node)
            continue
        [x], [y] = node.input, node.output
        steps = (
            ("Min", [x, named[0.0]], f"{y}_low"),
            ("Exp", [f"{y}_low"], f"{y}_exp"),
            ("Sub", [f"{y}_exp", named[1.0]], f"{y}_less"),
            ("Max", [x, f"{y}_less"], y),
        )
        nodes += [onnx.helper.make_node(kind, inputs, [output]) for kind, inputs, output in steps]
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(np.array(v, np.float32), name) for v, name in named.items()
    )


def _share_weights(graph: onnx.GraphProto) -> None:
    """Keeps each weight once: the exporter folds a transposed copy into every use of it."""
    used = {name for node in graph.node for name in node.input}
    first: dict[Any, str] = {}
    renamed: dict[str, str] = {}
    kept = []
    for tensor in graph.initializer:
        key = (tensor.data_type, tuple(tensor.dims), numpy_helper.to_array(tensor).tobytes())
        if tensor.name not in used:
            continue
        if key in first:
            renamed[tensor.name] = first[key]
        else:
            first[key] = tensor.name
            kept.append(tensor)
    del graph.initializer[:]
    graph.initializer.extend(kept)
    for node in graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]


def _strip(model: onnx.ModelProto) -> None:
    """Removes what the exporter notes of the code's whereabouts: stack traces with the paths of files."""
    graph = model.graph
    del graph.value_info[:]
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keeps the exporter's progress, warnings and log lines off the terminal; errors are raised anyway."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    said = io.StringIO()
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(said),
            contextlib.redirect_stderr(said),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
