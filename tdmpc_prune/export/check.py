"""Whether an exported graph computes what PyTorch computes: in closed loop, over one episode.

At every step both get the same observation, mean and noise, and the graph's action drives the simulator.
The policy is a smooth function, and its two float32 implementations differ by rounding alone. The planner
is not smooth: it sorts about a hundred candidates by value and keeps the best. Where two values at the edge
are closer than their own rounding (some 1e-4 on a value of 100; at the laptop size about one step in 400),
two correct implementations keep different candidates, and their actions may differ by 0.1 and more. No
tolerance is right for both kinds of steps, so a step that is off by more than `TOLERANCE` is compared again,
stage by stage, with PyTorch in float64:

- the graph's values of all candidates in every iteration must be those of PyTorch for the same candidates,
  up to a few times the rounding that PyTorch itself shows there in float32;
- with these very values, PyTorch's planner must arrive at the graph's action and mean, within `TOLERANCE`.

So a step passes only if the graph did what the algorithm does with values that are right to within rounding.
Nothing is left out, and the tolerance is the same for all steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass

import gymnasium
import numpy as np
import onnx
import torch
from torch import Tensor

from agents.tdmpc.planner import Planner
from agents.tdmpc.world_model import WorldModel
from tdmpc_prune.export.graphs import Graph, PlannerGraph, PolicyGraph
from tdmpc_prune.export.runtime import draw, open_session, run_episode

TOLERANCE = 1e-4
"""Largest difference of an action or a mean that passes; both are in units of the action, [-1, 1]."""
ROUNDING_FACTOR = 10
"""How much larger than PyTorch's, on the same candidates, the rounding of the graph's values may be.

Measured on trained agents: 1.2 times in the median, at most 3.6 times; all of it below 3e-6 of the value.
"""
UNIFORM_ROUNDING = 1e-5
"""How far the number that draws an elite may move: float32's error in a cumulated sum of weights is near 1e-6."""


class CheckError(Exception):
    """The graph does not compute what PyTorch computes; the message says where, and by how much."""


@dataclass(frozen=True)
class Check:
    """What the comparison found."""

    steps: int
    """Agent steps of the episode."""
    return_onnx: float
    """Return of the graph."""
    return_torch: float
    """Return of PyTorch on its own, with the same seed and noise."""
    action_difference: float
    """Largest absolute difference of an action."""
    mean_difference: float | None
    """Largest absolute difference of a mean; None: this controller has none."""
    rounding_steps: int
    """Steps whose candidates were too close for float32 to sort, and which were compared stage by stage."""
    rounding_difference: float
    """Largest absolute difference, in those steps, from PyTorch in float32, which sorted them otherwise."""


def check_graph(graph: Graph, model: onnx.ModelProto, env: gymnasium.Env, seed: int) -> Check:
    """Compares an exported graph with PyTorch over the episode of this seed, which is the noise's as well.

    Raises:
        CheckError: they differ.
    """
    if isinstance(graph, PlannerGraph):
        return _check_planner(graph, model, env, seed)
    return _check_policy(graph, model, env, seed)


def _check_policy(graph: PolicyGraph, model: onnx.ModelProto, env: gymnasium.Env, seed: int) -> Check:
    session = open_session(model)
    differences: list[float] = []

    @torch.no_grad()
    def torch_act(obs: np.ndarray) -> np.ndarray:
        return graph(torch.from_numpy(obs))[0].numpy()

    def act(obs: np.ndarray) -> np.ndarray:
        (action,) = session.run(None, {"observation": obs})
        differences.append(_difference(action, torch_act(obs)))
        if not differences[-1] <= TOLERANCE:
            raise CheckError(_message("policy", len(differences) - 1, differences[-1]))
        return action

    total, steps = run_episode(env, seed, act)
    alone, _ = run_episode(env, seed, torch_act)
    return Check(steps, total, alone, max(differences), None, 0, 0.0)


def _check_planner(graph: PlannerGraph, model: onnx.ModelProto, env: gymnasium.Env, seed: int) -> Check:
    session, reference = open_session(model), StageByStage(graph, model)
    found: list[list[float]] = []
    excused: list[float] = []
    mean = graph.example()[1].numpy()
    generator = np.random.default_rng(seed)

    def act(obs: np.ndarray) -> np.ndarray:
        nonlocal mean
        inputs = {"observation": obs, "mean": mean, "noise": draw(generator, graph.noise_size)}
        outputs = session.run(None, inputs)
        direct = _differences(outputs, _torch_step(graph, inputs))
        found.append(direct)
        if not max(direct) <= TOLERANCE:
            found[-1] = reference.differences(inputs, outputs)
            excused.append(max(direct))
        if not max(found[-1]) <= TOLERANCE:
            raise CheckError(_message("planner", len(found) - 1, max(direct)))
        mean = outputs[1]
        return outputs[0]

    total, steps = run_episode(env, seed, act)
    alone, _ = run_episode(env, seed, _TorchPlanner(graph, seed))
    action, mean_off = (max(of) for of in zip(*found, strict=True))
    return Check(steps, total, alone, action, mean_off, len(excused), max(excused, default=0.0))


class StageByStage:
    """A control step of PyTorch in float64, which goes on from the graph's own values of the candidates."""

    def __init__(self, graph: PlannerGraph, model: onnx.ModelProto) -> None:
        """Opens the graph once more, with the values that it sorts as outputs."""
        self.graph = graph
        self.model = deepcopy(graph.model).double()
        opened = onnx.ModelProto()
        opened.CopyFrom(model)
        for node in model.graph.node:
            if node.op_type == "TopK":
                opened.graph.output.append(
                    onnx.helper.make_tensor_value_info(node.input[0], onnx.TensorProto.FLOAT, None)
                )
        self.session = open_session(opened)

    @torch.no_grad()
    def differences(self, inputs: dict[str, np.ndarray], outputs: list[np.ndarray]) -> list[float]:
        """Largest absolute differences of the graph's action and mean from PyTorch's; infinite if a value is wrong."""
        values = [torch.from_numpy(v).double() for v in self.session.run(None, inputs)[2:]]
        observation, mean, noise = (torch.from_numpy(inputs[name]).double() for name in self.graph.INPUTS)
        best = [np.inf, np.inf]
        # The last number of the noise draws an elite; where it falls between two, both are right.
        uniform = torch.special.ndtr(noise[:, -1])
        for shift in (0, UNIFORM_ROUNDING, -UNIFORM_ROUNDING):
            planner = _Given(self.graph.planner, self.model, values)
            moved = noise.clone()
            if shift:
                moved[:, -1] = torch.special.ndtri((uniform + shift).clamp(1e-9, 1 - 1e-9))
            found = self.graph.step(self.model, planner, observation, mean, moved)
            if not planner.right:
                break
            differences = _differences(outputs, [tensor.numpy() for tensor in found])
            best = min(best, differences, key=max)
            if max(best) <= TOLERANCE:
                break
        return best


class _Given(Planner):
    """A planner in float64 that takes the values of its candidates from elsewhere, and judges them."""

    def __init__(self, single: Planner, model: WorldModel, values: list[Tensor]) -> None:
        """Goes through `values`, one [1, S + P] for each iteration; `single` is the planner in float32."""
        super().__init__(
            model,
            single.config,
            action_dim=single.action_dim,
            discount=single.discount,
            policy_std=single.policy_std,
            generators=(),
        )
        self.single = single
        self.values = iter(values)
        self.right = True

    def estimate_value(self, z: Tensor, actions: Tensor, noise: Tensor) -> Tensor:
        """The next given values; `right` remembers whether all so far were these candidates' own."""
        given = next(self.values)
        exact = super().estimate_value(z, actions, noise).nan_to_num(0)
        rounded = self.single.estimate_value(z.float(), actions.float(), noise.float()).nan_to_num(0)
        size = float(exact.abs().max())
        rounding = max(float((rounded - exact).abs().max()), size * torch.finfo(torch.float32).eps)
        self.right &= float((given - exact).abs().max()) <= ROUNDING_FACTOR * rounding
        # Equal ones are sorted by their index in ONNX, and anyhow in PyTorch: 1e-13 apart, they are not equal.
        return given - 1e-13 * (1 + size) * torch.arange(given.shape[1])


class _TorchPlanner:
    """PyTorch on its own, with the noise of the check."""

    def __init__(self, graph: PlannerGraph, seed: int) -> None:
        self.graph = graph
        self.generator = np.random.default_rng(seed)
        self.mean = graph.example()[1].numpy()

    def __call__(self, obs: np.ndarray) -> np.ndarray:
        noise = draw(self.generator, self.graph.noise_size)
        action, self.mean = _torch_step(self.graph, {"observation": obs, "mean": self.mean, "noise": noise})
        return action


@torch.no_grad()
def _torch_step(graph: PlannerGraph, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Action and next mean of PyTorch."""
    return [out.numpy() for out in graph(*(torch.from_numpy(inputs[name]) for name in graph.INPUTS))]


def _differences(outputs: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> list[float]:
    """The largest absolute difference of each output."""
    return [_difference(a, b) for a, b in zip(outputs, others, strict=True)]


def _difference(a: np.ndarray, b: np.ndarray) -> float:
    """Largest absolute difference; infinite where either is not a number."""
    return float(np.nan_to_num(np.abs(a - b), nan=np.inf).max())


def _message(controller: str, step: int, difference: float) -> str:
    return (
        f"the exported {controller} does not act as in PyTorch: step {step} of the check differs by "
        f"{difference:.3g}, the most that passes is {TOLERANCE:g}, and rounding does not explain it; "
        "nothing was written"
    )
