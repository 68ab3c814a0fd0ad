"""The public TD-MPC code, driven from a checkout of it that is given by its path; nothing of it is part of this one.

It is written for a GPU. Here it computes wherever it is told, on the same random data as ours.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from agents.tdmpc.config import TDMPCConfig
from tdmpc_prune.errors import UserError
from tdmpc_prune.speed import LATE, Subject

PACKAGE, MODULE = "algorithm", "algorithm.tdmpc"


class Upstream:
    """Their agent, with the sizes, the batch and the observation of one of ours."""

    def __init__(self, checkout: Path, ours: Subject) -> None:
        """Builds it.

        Raises:
            UserError: the checkout is none, or its code is not what is known here.
        """
        module = load(checkout)
        device = ours.agent.device
        try:
            with patch.object(nn.Module, "cuda", lambda self: self.to(device)):
                self.agent = module.TDMPC(settings(ours))
            self.agent.device = device
        except (AttributeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"--upstream {checkout}: its agent cannot be built ({reason[:200]})") from error
        self.replay = FixedReplay(ours)
        self.obs = ours.obs[0]
        self.step = LATE

    def update(self) -> dict[str, float]:
        """One update; returns its losses."""
        self.step += 1
        losses: dict[str, float] = self.agent.update(self.replay, self.step)
        return losses

    def plan(self) -> Any:
        """One control step, without exploration; returns an action [A]. Plans go on from each other, as ours do."""
        return self.agent.plan(self.obs, eval_mode=True, step=self.step, t0=False).cpu().numpy()


class FixedReplay:
    """What it takes for a replay buffer: our batch, again and again."""

    def __init__(self, ours: Subject) -> None:
        batch = ours.batch
        self.drawn = (
            batch.obs[0],
            batch.obs[1:],
            batch.action,
            batch.reward.unsqueeze(2),
            batch.index,
            batch.weight,
        )

    def sample(self) -> tuple[torch.Tensor, ...]:
        """First observations, those that follow, actions, rewards, indices and weights."""
        return self.drawn

    def update_priorities(self, index: torch.Tensor, priority: torch.Tensor) -> None:
        """Nothing: the batch stays."""


def settings(ours: Subject) -> SimpleNamespace:
    """Our settings under their names."""
    config: TDMPCConfig = ours.agent.config
    planner, schedule_steps = config.planner, config.schedule_steps or 1  # timed when it is over
    return SimpleNamespace(
        modality="state",
        obs_shape=(ours.agent.obs_dim,),
        action_dim=ours.agent.action_dim,
        enc_dim=config.encoder_dim,
        mlp_dim=config.hidden_dim,
        latent_dim=config.latent_dim,
        batch_size=config.batch_size,
        horizon=config.horizon,
        discount=config.discount,
        rho=config.rho,
        consistency_coef=config.consistency_coef,
        reward_coef=config.reward_coef,
        value_coef=config.value_coef,
        lr=config.lr,
        grad_clip_norm=config.grad_clip,
        tau=config.tau,
        update_freq=config.target_every,
        seed_steps=config.random_steps,
        std_schedule=f"linear({planner.start_std},{config.policy_std},{schedule_steps})",
        horizon_schedule=f"linear(1,{config.horizon},{schedule_steps})",
        min_std=config.policy_std,
        iterations=planner.iterations,
        num_samples=planner.num_samples,
        num_elites=planner.num_elites,
        mixture_coef=planner.policy_fraction,
        temperature=planner.temperature,
        momentum=planner.momentum,
    )


def load(checkout: Path) -> ModuleType:
    """The module with their agent.

    Raises:
        UserError: it is not there, or cannot be imported.
    """
    source = checkout / "src"
    if not source.joinpath(*MODULE.split(".")).with_suffix(".py").is_file():
        raise UserError(f"--upstream {checkout}: no checkout of TD-MPC (it has no src/algorithm/tdmpc.py)")
    try:
        with importable(source):
            return importlib.import_module(MODULE)
    except (ImportError, SyntaxError, AttributeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"--upstream {checkout} cannot be imported ({reason[:200]})") from error


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Finds modules in a folder first, leaves no bytecode there, and forgets them in the end."""
    writes_none = sys.dont_write_bytecode
    sys.path.insert(0, str(folder))
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes_none
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]
