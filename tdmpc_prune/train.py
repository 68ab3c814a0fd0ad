"""The training loop."""

from __future__ import annotations

import sys
from typing import Any

import torch

from tdmpc_prune.autoencoder_training import AutoencoderTraining
from tdmpc_prune.config import AUTOENCODER, AnyTrainConfig, AutoencoderTrainConfig
from tdmpc_prune.device import choose_device, set_deterministic, set_threads
from tdmpc_prune.errors import Interrupted, Stopped
from tdmpc_prune.faults import AGAIN, building, running
from tdmpc_prune.logger import Logger
from tdmpc_prune.plots import plot_run
from tdmpc_prune.run import Run
from tdmpc_prune.run_folder import RunFolder, to_json, write_json
from tdmpc_prune.signals import StopSignals
from tdmpc_prune.training import Training
from tdmpc_prune.wandb_sink import check_login


def train(config: AnyTrainConfig) -> dict[str, Any]:
    """Trains, or resumes, a run; returns its summary.

    Raises:
        UserError: the settings, the machine or the run folder do not allow it; nothing was changed.
        Interrupted: SIGINT or SIGTERM came; a checkpoint was saved, the same call goes on from it.
        Stopped: it cannot go on; the same holds.
        Failure: it could not even be saved; the same call goes on from the last checkpoint.
    """
    device = choose_device(config.device)
    set_deterministic(config.deterministic)
    set_threads(config.threads or int(config.deterministic))
    folder = RunFolder(config.folder)
    folder.check(config)
    if (summary := folder.finished_summary(config)) is not None:
        print(f"{folder.path}: finished already", file=sys.stderr)
        return summary
    check_login(config.wandb)
    with folder.locked(config):
        return _train(config, folder, device)


def _train(config: AnyTrainConfig, folder: RunFolder, device: torch.device) -> dict[str, Any]:
    """What `train` does in a folder that no other run writes to."""
    summary = None
    kind: type[Run] = AutoencoderTraining if isinstance(config, AutoencoderTrainConfig) else Training
    with building(kind.memory):
        run = kind(config, folder, device)
    folder.create(config)
    with running(folder.path, run.memory):
        log = Logger(
            config.wandb,
            folder=folder.path,
            metrics=folder.metrics,
            size=run.metrics_bytes,
            steps=config.steps,
            step=run.progress.env_step,
            settings=to_json(config),
        )
    if run.resumed:
        log.say(f"resumed at environment step {run.progress.env_step} of {config.steps}")

    try:
        with running(folder.path, run.memory):
            try:
                _learn(run, log)
            except (Interrupted, Stopped) as stop:
                run.save(log.file.sync())
                log.say(f"saved at environment step {run.progress.env_step}; {AGAIN}")
                if isinstance(stop, Interrupted):
                    log.interrupted()
                raise
            run.save(log.file.sync())
            summary = run.summary()
            plot_run(folder)
            write_json(folder.summary, summary)  # last: who finds it finds all
            return summary
    finally:
        log.close(summary)
        run.close()


def _learn(run: Run, log: Logger) -> None:
    """Makes whatever is due, step by step, until nothing is."""
    together = 1
    with StopSignals() as stop:
        while True:
            stop.check()
            if run.pending_updates:
                run.update()
            elif run.episode_unlogged:
                log.write(run.episode_row())
            elif run.removal_unlogged:
                row = run.removal_row(stop.check)
                log.write(row)
                log.removal(row)
            elif run.evaluation_due:
                log.write(run.evaluate(stop.check))
                run.show_evaluation(log)
            elif run.removal_due:
                missing = run.removals_missing
                event = run.remove(stop.check)
                together = max(together, missing - run.removals_missing)
                if event.idle:
                    log.say(f"warning: event {event.number} removed nothing (due: {event.scheduled:.1%})")
            elif run.finished:
                break
            elif run.checkpoint_due:
                run.save(log.file.sync())
            else:
                log.progress(run.collect())
    warmup = run.config.prune.importance.warmup
    if together > 1:
        episode = "" if run.config.task == AUTOENCODER else " and for the end of an episode"
        log.say(
            f"warning: up to {together} removals fell together, since they wait for {warmup} updates{episode}: "
            "raise --steps or lower --prune.events or --prune.importance.warmup"
        )
    if not run.agent.updates:
        log.say(
            "warning: nothing was learned: no episode was longer than agent.horizon; lower --agent.horizon"
        )
    elif run.removals_missing:
        log.say(
            f"warning: {run.removals_missing} removals were not made, since scores count only after "
            f"{warmup} updates: raise --steps or lower --prune.importance.warmup"
        )
