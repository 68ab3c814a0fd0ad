"""What a user of the exported files has to know, as JSON: what goes in, what comes out, and what was checked."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import gymnasium
import numpy as np
import onnx
import onnxruntime
import torch
from gymnasium import spaces
from torch import Tensor

from agents.tdmpc.agent import TDMPC
from envs.perturb import model_and_data
from tdmpc_prune import __version__
from tdmpc_prune.checkpoint import StoredAgent
from tdmpc_prune.export.check import TOLERANCE, Check
from tdmpc_prune.export.graphs import OPSET, Graph, PlannerGraph
from tdmpc_prune.latency import Latency

SCHEMA = 1
NORMAL = "standard normal, all numbers independent, drawn afresh at every step"
Json = dict[str, Any]

HOW_TO = {
    "policy": (
        "policy.onnx is the policy alone. Every control period, run it on the observation; its action goes to "
        "the actuators."
    ),
    "planner": (
        "planner.onnx is the whole planner. Where an episode begins, set mean to zeros. Every control period, "
        "draw noise afresh from the standard normal distribution, independently for each number, and run the "
        "graph on observation, mean and noise. Its action goes to the actuators, and its next_mean is the "
        "mean of the next run: it is shifted by one step already. Zeros for the noise are no substitute: the "
        "planner searches with it."
    ),
    "all": (
        "Where an observation holds a number that is not finite, the action is NaN: send it to no actuator. "
        "All tensors are float32, with a batch of one. Give observations in the order of observation.entries, "
        "raw: nothing is normalised. Actions lie in [-1, 1]; scale -1 to 1 linearly to actuator_low to "
        "actuator_high, unless the simulator's own wrapper does it (envs.make_env does). Hold an action for "
        "control_period_s, which is action_repeat steps of the task. run_controller.py is a complete example. "
        "Check: each controller ran one episode beside PyTorch, with the same observation, mean and noise at "
        "every step; action_difference and mean_difference are the largest ones found. At rounding_steps of "
        "its steps two candidates of the planner were too close for float32 to sort, and PyTorch chose "
        "another one: rounding_difference is by how much its action or mean differed there. These steps were "
        "compared with PyTorch in float64, going on from the graph's values of the candidates, which were "
        "right to within rounding."
    ),
}


def contract(
    stored: StoredAgent,
    env: gymnasium.Env,
    seed: int,
    controllers: Mapping[str, Json],
    files: Mapping[str, str],
) -> Json:
    """The whole contract.

    Args:
        stored: the agent.
        env: an environment of its task.
        seed: of the check's episode.
        controllers: a `controller_entry` for each.
        files: SHA-256 by file.
    """
    agent = stored.agent
    return {
        "schema": SCHEMA,
        "how_to": " ".join(HOW_TO[name] for name in (*controllers, "all")),
        "task": stored.task,
        "control_period_s": float(env.get_wrapper_attr("control_timestep")),
        "action_repeat": stored.action_repeat,
        "simulator": {"construction_seed": stored.seed, "episode_seed": seed},
        "observation": {
            "shape": [1, agent.obs_dim],
            "dtype": "float32",
            "units": "the simulator's own, as it gives them; MuJoCo computes in m, kg, s and rad",
            "entries": observation_entries(env),
        },
        "action": {
            "shape": [1, agent.action_dim],
            "dtype": "float32",
            "low": -1.0,
            "high": 1.0,
            "units": "share of the actuator's range; its limits are in the simulator's own units",
            "entries": action_entries(env),
        },
        "controllers": controllers,
        "network": {
            "parameters": stored.parameters,
            "sparsity": stored.sparsity,
            "pruned_by": stored.criterion,
            "widths": agent.model.architecture(),
            "agent_step": stored.agent_step,
            "env_step": stored.env_step,
        },
        "versions": {
            "tdmpc_prune": __version__,
            "torch": torch.__version__,
            "onnx": onnx.__version__,
            "onnxruntime": onnxruntime.__version__,
            "opset": OPSET,
        },
        "files": files,
    }


def controller_entry(
    graph: Graph, agent: TDMPC, file: str, *, check: Check, latency: Latency, control_period: float
) -> Json:
    """One controller: its file and tensors, what is carried from step to step, what was checked and measured.

    `control_period` in seconds.
    """
    with torch.no_grad():
        outputs = graph(*graph.example())
    entry: Json = {
        "file": file,
        "inputs": _tensors(graph.INPUTS, graph.example()),
        "outputs": _tensors(graph.OUTPUTS, outputs),
        "carry": {},
        "noise": {},
        "parameters": sum(p.numel() for module in graph.networks() for p in module.parameters()),
        "check": {**asdict(check), "tolerance": TOLERANCE},
        "ms_per_step": {
            "p50": latency.p50,
            "p99": latency.p99,
            "control_period": 1e3 * control_period,
            "threads": 1,
            "machine": f"{platform.system()} {platform.machine()}",
        },
    }
    if isinstance(graph, PlannerGraph):
        planner = asdict(agent.config.planner)
        entry["carry"] = {"next_mean": "mean"}
        entry["noise"] = {"noise": {"size": graph.noise_size, "distribution": NORMAL}}
        entry["planner"] = {"horizon": graph.horizon, "min_std": graph.min_std, **planner}
    return entry


def observation_entries(env: gymnasium.Env) -> list[Json]:
    """Names, places and ranges of an observation's parts: those of a dictionary's, else one for each number."""
    space = env.unwrapped.observation_space
    if isinstance(space, spaces.Dict) and all(isinstance(part, spaces.Box) for part in space.values()):
        parts = [(name, part) for name, part in space.items() if isinstance(part, spaces.Box)]
    else:
        assert isinstance(env.observation_space, spaces.Box), env.observation_space
        numbers = zip(env.observation_space.low, env.observation_space.high, strict=True)
        parts = [(f"observation[{i}]", spaces.Box(low, high, ())) for i, (low, high) in enumerate(numbers)]
    entries: list[Json] = []
    for name, part in parts:
        start = sum(entry["size"] for entry in entries)
        limits = {"low": _limit(part.low.min()), "high": _limit(part.high.max())}
        entries.append({"name": name, "start": start, "size": int(np.prod(part.shape)), **limits})
    return entries


def action_entries(env: gymnasium.Env) -> list[Json]:
    """Names of the actuators, and what -1 and 1 mean to them."""
    space = env.unwrapped.action_space
    assert isinstance(space, spaces.Box), space
    found = model_and_data(env)
    names = [found[0].actuator(i).name for i in range(found[0].nu)] if found else []
    if len(names) != len(space.low):  # no simulator's, or not what the actions are
        names = [""] * len(space.low)
    return [
        {
            "name": name or f"action[{i}]",
            "index": i,
            "actuator_low": float(space.low[i]),
            "actuator_high": float(space.high[i]),
        }
        for i, name in enumerate(names)
    ]


def _tensors(names: Sequence[str], tensors: Sequence[Tensor]) -> Json:
    return {
        name: {"shape": list(tensor.shape), "dtype": "float32"}
        for name, tensor in zip(names, tensors, strict=True)
    }


def _limit(value: float) -> float | None:
    """A limit as JSON knows it; None: there is none."""
    return float(value) if np.isfinite(value) else None
