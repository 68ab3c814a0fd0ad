"""Runs a sweep's trials with Ray Tune: side by side on this machine, or on all machines of a Ray cluster.

Ray Tune places trials, tries failed ones again (on another machine, if theirs is gone) and stops those that lag
behind. What was tried and what came of it is in the sweep's folder alone: Ray's own state is thrown away.
"""

# ruff: noqa: E402 - the environment comes before Ray

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

# Read when Ray is imported. No statistics of its use are sent; a worker that dies does not kill its training, which
# saves itself; a worker without GPUs sees none; Tune prints nothing, neither logs nor stores anything that we would
# read, and does not insist on the metric in every result.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_kill_child_processes_on_worker_exit": "0",
    "RAY_NUM_REDIS_GET_RETRIES": "120",  # seconds that its server may take to start, on a busy machine
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # it would end as if all were done
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
}
os.environ.update(ENVIRONMENT | os.environ)

import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.tune.stopper import NoopStopper

from tdmpc_prune.errors import Interrupted, UserError
from tdmpc_prune.signals import StopSignals
from tdmpc_prune.sweep.driver import Sweep, of_earlier_sittings
from tdmpc_prune.sweep.trial import Resources, TrialProcess, values_of

SECONDS_BETWEEN_LOOKS = 0.5
"""Between two looks at a trial's metrics."""
SECONDS_OF_A_STEP = 5.0
"""After which a trial reports even if there is nothing new, so that it can be stopped."""
SHARE, EVALUATION, VALUE, MACHINE, END, PROBLEM = "share", "evaluation", "value", "machine", "end", "problem"
"""What a trial reports."""


class TuneTrial(tune.Trainable):
    """A trial as Ray Tune sees it: a step ends with the next evaluation of the training process."""

    def setup(self, config: dict[str, Any]) -> None:
        """Starts the process; it goes on from its own checkpoint, if it has one."""
        self.spec = config
        if not Path(config["sweep"], "sweep.json").is_file():
            here = ray.util.get_node_ip_address()
            raise RuntimeError(f"machine {here} does not see {config['sweep']}: give a folder that all share")
        self.run, self.told = Path(config["run"]), 0
        self.machine = ray.get_runtime_context().get_node_id()
        self.process = TrialProcess(
            config["line"], run=self.run, log=Path(config["log"]), threads=config["threads"]
        )

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next trial on, in the same Ray worker."""
        self.cleanup()
        self.setup(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """Waits for the next value of the metric, for the end, or for some seconds."""
        until = time.monotonic() + SECONDS_OF_A_STEP
        while True:
            code = self.process.wait(SECONDS_BETWEEN_LOOKS)
            values = values_of(self.run / "metrics.jsonl", self.spec["metric"])
            if self.told < len(values):
                step, value = values[self.told]
                self.told += 1
                report = {SHARE: step / self.spec["steps"], VALUE: value, MACHINE: self.machine}
                # Without its time, the scheduler makes no decision.
                return report | ({EVALUATION: self.told} if self.told >= self.spec["grace"] else {})
            if code == 2:  # a mistake in the settings: another try would say the same
                return {"done": True, PROBLEM: self.process.last_words()}
            if code == 0:
                return {"done": True, END: True}
            if code is not None:
                raise RuntimeError(f"exit code {code}: {self.process.last_words()}")
            if time.monotonic() > until:
                return {}

    def cleanup(self) -> None:
        """Lets the process save itself."""
        if hasattr(self, "process"):
            self.process.stop()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: a training's checkpoints are its own."""

    def load_checkpoint(self, checkpoint: dict | None) -> None:
        """Nothing, either."""


class Proposals(Searcher):
    """Hands the sweep's open trials to Tune."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__(metric=VALUE, mode="max")
        self.sweep = sweep

    def suggest(self, trial_id: str) -> Any:
        return self.sweep.next_trial() or Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The events below tell the sweep."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's folder knows all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, either."""


class Events(tune.Callback):
    """Tells the sweep what Tune sees."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self.values: dict[int, list[float]] = {}

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        if VALUE in result:
            number = trial.config["trial"]
            self.values.setdefault(number, []).append(result[VALUE])
            self.sweep.progress(number, result[SHARE])

    def on_trial_recover(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number = trial.config["trial"]
        self.values.pop(number, None)  # it will report all of them again
        self.sweep.retried(number, _reason(trial))

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        self.sweep.failed(trial.config["trial"], _reason(trial))

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        number, last = trial.config["trial"], trial.last_result
        values = self.values.pop(number, [])
        if PROBLEM in last:
            self.sweep.failed(number, last[PROBLEM])
        elif END in last:
            self.sweep.finished(number, values)
        elif not self.sweep.interrupted:
            self.sweep.stopped(number, values)


class OnSignal(tune.Stopper):
    """Ends the sweep after a signal."""

    def __init__(self, sweep: Sweep, signals: StopSignals) -> None:
        self.sweep, self.signals = sweep, signals

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self.stop_all()

    def stop_all(self) -> bool:
        self.sweep.interrupted = self.signals.received is not None
        return self.sweep.interrupted

    def __reduce__(self) -> Any:
        # Tune stores what it was given, which nobody ever reads here.
        return NoopStopper, ()


def run(sweep: Sweep, *, address: str | None, retries: int, trainable: type[TuneTrial] = TuneTrial) -> None:
    """Trains all open trials of a sweep, and returns when none is open any more.

    Args:
        sweep: the sweep, begun.
        address: of a running Ray cluster (`auto`: the one of this machine); None: this machine alone.
        retries: how often a trial that fails is tried again.
        trainable: what trains a trial.

    Raises:
        UserError: there is no cluster, or no machine has what a trial needs.
        Interrupted: a signal came; all trials saved themselves.
    """
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it shows tracebacks of trials; we say a line
    with connected(address):
        _check_resources(sweep.resources)
        state = sweep.folder.path / "ray"
        try:
            with StopSignals() as signals:
                # Not tune.Tuner, which pickles all this to restore it: the sweep's folder restores itself.
                tune.run(
                    trainable,
                    name="tune",
                    storage_path=str(state.absolute()),
                    search_alg=Proposals(sweep),
                    scheduler=_scheduler(sweep),
                    num_samples=-1,
                    resources_per_trial={"cpu": sweep.resources.cpus, "gpu": sweep.resources.gpus},
                    reuse_actors=True,
                    max_failures=retries,
                    raise_on_failed_trial=False,
                    stop=OnSignal(sweep, signals),
                    callbacks=[Events(sweep)],
                    verbose=0,
                )
                if sweep.interrupted:
                    sweep.say("interrupted, and all trials saved; the same command goes on from there")
                    raise Interrupted
        finally:
            shutil.rmtree(state, ignore_errors=True)


@contextmanager
def connected(address: str | None) -> Iterator[None]:
    """A connection to a cluster, or a Ray of our own with the cores that this process may use."""
    options: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address is None:
        options |= {"num_cpus": len(os.sched_getaffinity(0)), "include_dashboard": False}
    elif re.fullmatch(r".+:\d+", address) and "://" not in address:
        _check_listens(address)
    already = ray.is_initialized()
    try:
        if not already:
            ray.init(address=address or "local", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        if address is None:
            raise RuntimeError(f"Ray does not start on this machine ({reason})") from error
        raise UserError(f"--address {address}: no Ray cluster there ({reason}): ray start --head") from error
    try:
        yield
    finally:
        if not already:
            ray.shutdown()


def _check_listens(address: str) -> None:
    """Refuses an address where nobody listens: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"--address {address}: no Ray cluster there ({error}): ray start --head") from error


def _check_resources(wanted: Resources) -> None:
    """Refuses trials that no machine could ever take."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    for kind, amount, option in (("CPU", wanted.cpus, "cpus"), ("GPU", wanted.gpus, "gpus")):
        most = max((node.get(kind, 0) for node in nodes), default=0)
        if amount > most:
            raise UserError(
                f"--{option}-per-trial {amount:g}: no machine has more than {most:g} {kind}s, choose at most that"
            )


def _scheduler(sweep: Sweep) -> TrialScheduler:
    hyperband, metric = sweep.definition.hyperband, sweep.definition.metric
    if hyperband is None or metric is None:
        return FIFOScheduler()
    scheduler = ASHAScheduler(
        time_attr=EVALUATION,
        metric=VALUE,
        mode="max" if metric.maximise else "min",
        grace_period=sweep.first_decision,
        max_t=1_000_000,
        reduction_factor=hyperband.eta,
        stop_last_trials=False,
    )
    # Trials of earlier sittings count, too, though Tune never sees them.
    for trial, evaluation, value in of_earlier_sittings(sweep.folder.trials.values()):
        known: Any = SimpleNamespace(trial_id=f"earlier-{trial.number}")
        if evaluation == 1:
            scheduler.on_trial_add(None, known)  # type: ignore[arg-type]
        if evaluation >= sweep.first_decision:
            scheduler.on_trial_result(None, known, {EVALUATION: evaluation, VALUE: value})  # type: ignore[arg-type]
    return scheduler


def _reason(trial: Any) -> str:
    """Why a trial failed last, in a line: what `TuneTrial` raised, if it had time to."""
    file = Path(trial.error_file)
    lines = file.read_text().splitlines() if file.is_file() else []
    raised = next((line for line in reversed(lines) if line.strip()), "").partition("RuntimeError: ")[2]
    return raised[:300] or "its machine is gone"
