import numpy as np
import pytest
import torch

from agents.replay import Batch
from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import PlannerConfig, TDMPCConfig

OBS, ACTION, BATCH, HORIZON = 4, 2, 5, 3
# All widths differ, so that a slice taken from the wrong layer does not fit.
WIDTHS = {
    "encoder": [OBS, 9, 6],
    "dynamics": [6 + ACTION, 10, 11, 6],
    "reward": [6 + ACTION, 12, 13, 1],
    "policy": [6, 14, 15, ACTION],
    "q1": [6 + ACTION, 16, 17, 1],
    "q2": [6 + ACTION, 18, 19, 1],
}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def batch() -> Batch:
    """Random sequences for a TD-MPC of the sizes above."""
    rng = np.random.default_rng(0)
    columns = {
        "obs": rng.normal(size=(HORIZON + 1, BATCH, OBS)),
        "action": rng.uniform(-1, 1, (HORIZON, BATCH, ACTION)),
        "reward": rng.normal(size=(HORIZON, BATCH)),
        "terminated": np.zeros((HORIZON, BATCH)),
        "weight": np.ones(BATCH),
    }
    tensors = {name: torch.as_tensor(value, dtype=torch.float32) for name, value in columns.items()}
    return Batch(index=torch.arange(BATCH), **tensors)


@pytest.fixture
def tdmpc(batch) -> TDMPC:
    """A small TD-MPC with two Qs that has learned a little: all weights and moments are off zero."""
    config = TDMPCConfig(
        batch_size=BATCH,
        horizon=HORIZON,
        planner=PlannerConfig(iterations=2, num_samples=16, num_elites=4, policy_fraction=0.25),
    )
    agent = TDMPC(config, OBS, ACTION, seed=3, widths=WIDTHS)
    for _ in range(4):
        agent.update(batch)
    return agent
