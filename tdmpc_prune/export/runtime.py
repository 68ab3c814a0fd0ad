"""Exported graphs in ONNX Runtime, one thread each, as the example that goes with them runs them."""

from __future__ import annotations

from collections.abc import Callable

import gymnasium
import numpy as np
import onnx
import onnxruntime

from tdmpc_prune.export.graphs import Graph, PolicyGraph

Act = Callable[[np.ndarray], np.ndarray]
"""Actions [1, A] for observations [1, O]; what is carried from step to step is its own affair."""


def open_session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A graph, ready to run on one thread of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # fatal; errors are raised anyway
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def stepper(graph: Graph, model: onnx.ModelProto) -> Act:
    """The controller as a user runs it, from an observation to an action, the drawing of the noise included."""
    session = open_session(model)
    if isinstance(graph, PolicyGraph):
        return lambda obs: session.run(None, {"observation": obs})[0]
    generator, mean = np.random.default_rng(0), graph.example()[1].numpy()

    def act(obs: np.ndarray) -> np.ndarray:
        nonlocal mean
        inputs = {"observation": obs, "mean": mean, "noise": draw(generator, graph.noise_size)}
        action, mean = session.run(None, inputs)
        return action

    return act


def draw(generator: np.random.Generator, size: int) -> np.ndarray:
    """The noise [1, K] of one control step: standard normal."""
    return generator.standard_normal((1, size), dtype=np.float32)


def run_episode(env: gymnasium.Env, seed: int, act: Act) -> tuple[float, int]:
    """Return and number of agent steps of the episode with this seed."""
    total, steps, over = 0.0, 0, False
    obs, _ = env.reset(seed=seed)
    while not over:
        obs, reward, terminated, truncated, _ = env.step(act(obs[None])[0])
        total, steps, over = total + float(reward), steps + 1, terminated or truncated
    return total, steps
