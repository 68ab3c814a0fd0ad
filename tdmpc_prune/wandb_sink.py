"""A run's measurements at W&B, beside its own files. Whatever W&B does, the run goes on and its files are complete."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tdmpc_prune.config import WandbConfig, sweep_trial
from tdmpc_prune.errors import UserError

Row = Mapping[str, float | int]

SECONDS_TO_START = 30
"""An answer takes a second or two; what outlasts this is no hiccup, and then the run begins offline."""
SECONDS_TO_FINISH = 15
"""For what is not sent yet: rows are sent as they come, and an agent kills 30 seconds after its SIGTERM."""
SECONDS_OF_GRACE = 5
"""For W&B to say itself that it is late."""


class WandbSink:
    """Mirrors metrics.jsonl to W&B, line by line.

    Line n of the file is step n of the W&B run. So a resumed run knows what W&B has: online, the lines
    that it lacks are sent; offline, where W&B can only begin anew, a run with the same id is written from
    the first line on, and replaces the one before. An online run that fails goes on like that, too.
    """

    def __init__(
        self,
        config: WandbConfig,
        mode: str,
        *,
        folder: Path,
        metrics: Path,
        settings: dict[str, Any],
        say: Callable[[str], None],
    ) -> None:
        self.config, self.mode, self.folder, self.metrics = config, mode, folder, metrics
        self.settings, self.say = settings, say
        self.run: Any = None
        try:
            self._open()
        except Exception as error:
            self._fall_back(error)
        else:
            self.say(f"W&B: {self._place}")

    @property
    def _place(self) -> str:
        return self.run.url if self.mode == "online" else f"offline; {self._sync}"

    @property
    def _sync(self) -> str:
        files = "offline-run-*" if self.mode == "offline" else "run-*"
        return f"to send the run later: wandb sync {shlex.quote(str(self.folder))}/wandb/{files}"

    def write(self, row: Row) -> None:
        """Logs the next line of metrics.jsonl, which is in the file, unless W&B has it."""
        if self.run is None:
            return
        try:
            self._write(row)
        except Exception as error:
            self._fall_back(error)

    def give_back(self) -> None:
        """Asks W&B to have a trial that was interrupted resumed by the sweep's next agent."""
        if self.run is None or self.mode != "online":
            return
        with suppress(Exception):  # it is one trial less, no more
            if sweep_trial() and not self._stopped_on_purpose():
                self.run.mark_preempting()

    def close(self, summary: Mapping[str, Any] | None) -> None:
        """Ends the W&B run; without a summary it counts as not finished."""
        if self.run is None:
            return
        try:
            if summary:
                self.run.summary.update(dict(summary))
            run, code = self.run, 0 if summary else 1
            _within(SECONDS_TO_FINISH + SECONDS_OF_GRACE, lambda: run.finish(exit_code=code))
        except Exception as error:
            self._shut_down()
            self.say(f"warning: W&B did not take all ({reason(error)}); {self._sync}")

    def _open(self) -> None:
        """Starts or resumes the W&B run, and sends what it lacks of the file."""
        import wandb

        wandb.setup(settings=wandb.Settings(silent=True))
        old = self.folder / "wandb"
        if self.mode == "offline":
            shutil.rmtree(old, ignore_errors=True)
        trial = sweep_trial()
        identity = self.folder / "wandb_id.txt"
        if trial:
            identity.write_text(trial[1])
        elif not identity.exists() or not identity.read_text():
            identity.write_text(secrets.token_hex(4))
        # A sweep's agent has decided on the trial's id, and with it on its place, by variables of its own.
        own: dict[str, Any] = {
            "id": identity.read_text(),
            "name": self.folder.name,
            "project": self.config.project,
            "entity": self.config.entity,
        }
        options: dict[str, Any] = {"stop_fn": lambda: None} if trial else {}  # the agent sends SIGTERM anyway
        self.run = wandb.init(
            **({} if trial else own),
            resume="allow" if self.mode == "online" else None,
            mode=self.mode,  # type: ignore[arg-type]
            dir=self.folder,
            group=self.config.group or self.settings["task"],
            tags=self.config.tags,
            config=self.settings,
            settings=wandb.Settings(
                console="off",
                silent=True,
                init_timeout=SECONDS_TO_START,
                finish_timeout=SECONDS_TO_FINISH,
                finish_timeout_raises=True,
                **options,
            ),
        )
        self.run.define_metric("env_step")
        self.run.define_metric("*", step_metric="env_step")
        self.run.define_metric("pareto/*", step_metric="prune/sparsity")
        self._known = self.run.starting_step  # `step` says 0 for a moment after a run was resumed
        self._line = 0
        with self.metrics.open() as lines:
            for line in lines:
                self._write(json.loads(line))
        if self.mode == "online":  # which has all that these have
            for path in old.glob("offline-run-*"):
                shutil.rmtree(path, ignore_errors=True)

    def _write(self, row: Row) -> None:
        if self._line >= self._known:
            self.run.log(dict(row) | _pareto(row))
        self._line += 1

    def _fall_back(self, error: Exception) -> None:
        """Goes on offline where it was online, else without W&B; the run itself does not notice."""
        self._shut_down()
        if self.mode == "online":
            self.mode = "offline"
            try:
                self._open()
            except Exception:
                self._shut_down()
            else:
                self.say(f"warning: W&B failed ({reason(error)}): the run goes on offline; {self._sync}")
                return
        self.say(
            f"warning: W&B failed ({reason(error)}): the run goes on without it, {self.metrics} has every line"
        )

    def _shut_down(self) -> None:
        self.run = None
        with suppress(Exception):
            import wandb

            _within(SECONDS_OF_GRACE, lambda: wandb.teardown(exit_code=1))

    def _stopped_on_purpose(self) -> bool:
        """Whether W&B itself has asked to stop this run: its user, or the sweep's early_terminate."""
        import wandb

        query = """query RunStoppedStatus($entity: String, $project: String, $run: String!) {
            project(name: $project, entityName: $entity) { run(name: $run) { stopped } }
        }"""
        where = {"entity": self.run.entity, "project": self.run.project, "run": self.run.id}
        answer: Any = wandb.Api()._service_api.execute_graphql(query, where, timeout=SECONDS_OF_GRACE)
        return answer["project"]["run"]["stopped"] is True


def wandb_mode(config: WandbConfig) -> str:
    """`auto` decided: online where the user is logged in, else offline. Imports nothing."""
    if config.mode != "auto":
        return config.mode
    mode = os.environ.get("WANDB_MODE")
    if mode in ("online", "offline", "disabled"):
        return mode
    return "online" if _keys() else "offline"


def check_login(config: WandbConfig) -> None:
    """Refuses a run that is to be online where nobody is logged in.

    Raises:
        UserError: nobody is.
    """
    if wandb_mode(config) == "online" and not logged_in():
        remedy = "unset WANDB_MODE" if config.mode == "auto" else "choose --wandb.mode auto"
        raise UserError(f"W&B is to be online, but nobody is logged in: wandb login, or {remedy}")


def logged_in() -> bool:
    """Whether there is anything to log in to W&B with."""
    if _keys():
        return True
    import wandb

    wandb.setup(settings=wandb.Settings(silent=True))
    with suppress(Exception):
        return wandb.login(prompt=False)  # with a token, or from W&B's own settings file
    return False


def reason(error: Exception) -> str:
    """What an error of W&B's says, in a line, without the user's keys."""
    said = str(error) or type(error).__name__
    for key in _keys():
        said = said.replace(key, "***")
    return " ".join(said.split())[:200].rstrip(".")


def _keys() -> list[str]:
    """What the user logs in with."""
    keys = [os.environ.get("WANDB_API_KEY")]
    with suppress(OSError, NetrcParseError, ValueError, RuntimeError):  # the last one: nobody's home
        path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
        host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc  # with its port
        entry = netrc(path).authenticators(host)
        keys.append(entry and entry[2])
    return [key for key in keys if key]


def _within(seconds: float, action: Callable[[], Any]) -> None:
    """Does something that may hang; raises what it raises, or TimeoutError."""
    errors: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"no answer in {seconds} seconds")
    if errors:
        raise errors[0]


def _pareto(row: Row) -> dict[str, float | int]:
    """An evaluation of a pruned agent once more, for W&B's charts with sparsity on the x axis."""
    if "prune/sparsity" not in row:
        return {}
    return {f"pareto/{key}": row[f"eval/{key}"] for key in ("return", "error") if f"eval/{key}" in row}
