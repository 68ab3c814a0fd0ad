"""Makes what is not recorded yet: trainings, and measurements of what was trained. Resumable at any moment."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from results.revisions import Revision, overtaken
from results.store import Store
from results.trials import Trial
from tdmpc_prune.run_folder import provenance, to_json
from tdmpc_prune.sweep.trial import TrialProcess

MEASURED = Path(__file__).parent / "measured"
POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Measurement:
    """What a verb of the command says about trained runs; it needs their checkpoints."""

    name: str
    """Of its file under results/measured/."""
    verb: tuple[str, ...]
    """`validate`, `stability`, ... with its settings."""
    trials: tuple[Trial, ...] = ()
    """Whose run folders follow."""
    module: str = "tdmpc_prune"
    """What has the verb: the command, or one of benchmarks/."""

    @property
    def file(self) -> Path:
        """Its result: command, commit, machine, and the JSON object that the verb printed."""
        return MEASURED / f"{self.name}.json"

    @property
    def current(self) -> bool:
        """Whether it was measured, and on runs of today's settings and code: a default may have changed since."""
        if not self.file.exists():
            return False
        names = [trial.name for trial in self.trials]
        return json.loads(self.file.read_text())["trainings"] == names and self.overtaken is None

    @property
    def overtaken(self) -> Revision | None:
        """The change of the code that what was measured was trained before; None if it is of today's."""
        if not self.file.exists():
            return None
        record = json.loads(self.file.read_text())
        # Before commits of trainings were noted, these were at least as old as what measured them.
        commits = record.get("commits") or [record["commit"]] * len(self.trials)
        found = (
            overtaken(to_json(t.config), commit) for t, commit in zip(self.trials, commits, strict=False)
        )
        return next(filter(None, found), None)

    def result(self) -> dict[str, Any] | None:
        """What the verb printed when it was last measured; None before it was."""
        return json.loads(self.file.read_text())["result"] if self.file.exists() else None


Work = Trial | Measurement


def missing(work: Sequence[Work], store: Store | None) -> list[Work]:
    """What is not recorded yet by today's code, in order; all of it without a store.

    A training that several ask for comes once.
    """
    todo: dict[str, Work] = {}
    for one in work:
        if isinstance(one, Measurement):
            if store is None or not one.current:
                todo[one.name] = one
        elif store is None or not store.has(one.name, scores=one.scores) or store.overtaken(one.name):
            todo[one.name] = one if one.scores else todo.get(one.name, one)
    return list(todo.values())


class Runner:
    """Makes work, some at a time, one thread each; what is done is recorded at once.

    Trainings are processes of their own, which save themselves when this one is stopped or gone.
    """

    def __init__(self, store: Store, jobs: int) -> None:
        self.store, self.jobs = store, jobs
        self.stopping = threading.Event()
        self.lock = threading.Lock()
        self.at_work: dict[str, threading.Lock] = {}

    def run(self, work: Sequence[Work]) -> list[str]:
        """Makes all of it; returns what went wrong, a line each."""
        failures: list[str] = []
        with (
            ThreadPoolExecutor(self.jobs) as pool,
            tqdm(total=len(work), unit="run", disable=None, dynamic_ncols=True) as bar,
        ):
            futures = {pool.submit(self._make, one): one for one in work}
            try:
                for future in as_completed(futures):
                    bar.update()
                    if problem := future.result():
                        failures.append(f"{futures[future].name}: {problem}")
                        tqdm.write(failures[-1], file=sys.stderr)
            except KeyboardInterrupt:
                self.stopping.set()
                pool.shutdown(cancel_futures=True)
                raise
        return failures

    def _make(self, one: Work) -> str | None:
        return self._measure(one) if isinstance(one, Measurement) else self._record(one)

    def _record(self, trial: Trial) -> str | None:
        """Trains and records; returns what went wrong, None if nothing did."""
        if problem := self._train(trial):
            return problem
        with self.lock:
            self.store.add(trial.folder.path, scores=trial.scores)
        return None

    def _train(self, trial: Trial) -> str | None:
        """Trains, unless its checkpoints are there; returns what went wrong."""
        if trial.after and (problem := self._train(trial.after)):
            return problem
        with self.lock:
            own = self.at_work.setdefault(trial.name, threading.Lock())
        with own:  # others may start from it, too
            if old := trial.overtaken:
                aside = Path(f"{trial.folder.path}-before-{old.commit}")
                if aside.exists():
                    return f"{trial.folder.path} and {aside} are both of earlier code: move one away"
                trial.folder.path.rename(aside)
            if trial.made:
                return None
            process = TrialProcess(
                trial.command,
                run=trial.folder.path,
                log=trial.folder.path.parent / f"{trial.folder.path.name}.txt",
                threads=1,
            )
            while (code := process.wait(POLL_SECONDS)) is None:
                if self.stopping.is_set():
                    process.stop()
                    return "stopped"
            return process.last_words() if code else None

    def _measure(self, one: Measurement) -> str | None:
        for trial in one.trials:
            if problem := self._train(trial):
                return problem
        folders = [str(trial.folder.path) for trial in one.trials]
        line = [*one.verb, *folders, "--threads", "1", "--json"]
        process = subprocess.run([sys.executable, "-m", one.module, *line], capture_output=True, text=True)
        if process.returncode:
            return process.stderr.strip().splitlines()[-1]
        record = {
            **provenance(),
            "command": " ".join([f"python -m {one.module}", *line]),
            "trainings": [trial.name for trial in one.trials],
            "commits": [json.loads(t.folder.config.read_text())["commit"] for t in one.trials],
            "result": json.loads(process.stdout),
        }
        MEASURED.mkdir(exist_ok=True)
        text = json.dumps(record, indent=1)
        # Lists of numbers on a line: there are many of them.
        text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda m: f"[{' '.join(m[1].split())}]", text)
        one.file.write_text(text + "\n")
        return None
