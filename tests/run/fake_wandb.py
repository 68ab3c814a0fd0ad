"""W&B's side, as far as runs and sweeps here meet it: the words its agent runs, and a server in memory."""

import json
import os
import re
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from unittest import mock

import psutil
import yaml
from wandb import wandb_agent

KEY = "correcthorsebatterystaple" + "0123456789abcdef"
"""What a user of the server logs in with."""
SWEEP = "sweep123"


def end_wandb() -> None:
    """After it, W&B has written all, unless it hung, and knows nothing of the environment."""
    import wandb

    thread = threading.Thread(target=wandb.teardown, daemon=True)
    thread.start()
    thread.join(60)
    if thread.is_alive():  # seen once: its core did not end
        for child in psutil.Process().children():
            with suppress(psutil.NoSuchProcess):
                if child.name() == "wandb-core":
                    child.kill()
        thread.join(10)


def agent_command(definition: dict[str, Any], parameters: dict[str, Any], folder: str = "/tmp") -> list[str]:
    """The words that W&B's own agent runs for a trial with these parameters (nested ones as dicts).

    `${args_json_file}` and the parameters' own file are written below the folder.
    """
    started: list[list[str]] = []

    def process(command, **_):
        started.append(command)
        return mock.Mock()

    with (
        mock.patch.dict(os.environ, {"WANDB_DIR": folder, "WANDB_SWEEP_ID": SWEEP}),
        mock.patch.object(wandb_agent, "AgentProcess", process),
    ):
        agent = wandb_agent.Agent(api=None, queue=None, sweep_id=SWEEP)
        agent._sweep_command = list(definition.get("command") or [])
        arguments = {name: {"value": value} for name, value in parameters.items()}
        agent._command_run(
            {"type": "run", "run_id": "trial123", "program": definition.get("program"), "args": arguments}
        )
    return started[0]


@dataclass
class RunAtServer:
    """What the server knows of a run."""

    config: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, Any] = field(default_factory=dict)
    lines: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    exit_code: int | None = None
    preempting: bool = False
    stopped: bool = False


class Server(ThreadingHTTPServer):
    """A W&B server in memory, as small as its clients allow.

    An agent that has no trial gets the next of `commands`, and `exit` after the last one.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.runs: dict[str, RunAtServer] = {}
        self.sweep: dict[str, Any] | None = None
        self.commands: list[dict[str, Any]] = []
        self.operations: list[str] = []
        self.silent = threading.Event()
        """Set: requests are taken and never answered."""
        self.closed = threading.Event()

    def __enter__(self) -> "Server":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.closed.set()
        self.shutdown()
        self.server_close()

    def environment(self) -> dict[str, str]:
        """What makes a process use this server."""
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "no_proxy": "127.0.0.1"}

    def trial(self, run: str, kind: str = "run", **parameters: Any) -> dict[str, Any]:
        """The command that starts a trial."""
        arguments = {name.replace("__", "."): {"value": value} for name, value in parameters.items()}
        return {"type": kind, "run_id": run, "program": "tdmpc-prune", "args": arguments}

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        found = re.search(r"(?:query|mutation) (\w+)", query)
        operation = found[1] if found else "?"
        self.operations.append(operation)
        return getattr(self, f"on_{operation}", lambda _: {})(variables)

    def on_Viewer(self, variables):
        teams = {"edges": [{"node": {"name": "team"}}]}
        return {"viewer": {"id": "1", "username": "user", "entity": "team", "flags": "{}", "teams": teams}}

    on_GetDefaultEntity = on_GetViewer = on_Viewer

    def on_UpsertSweep(self, variables):
        self.sweep = yaml.safe_load(variables["config"])
        project = {"name": variables["projectName"] or "uncategorized", "entity": {"name": "team"}}
        return {"upsertSweep": {"sweep": {"name": SWEEP, "project": project}, "configValidationWarnings": []}}

    def on_SweepWithRuns(self, variables):
        if self.sweep is None or variables["sweep"] != SWEEP:
            return {"project": None}
        return {"project": {"sweep": {"config": yaml.dump(self.sweep), "runs": {"edges": []}}}}

    def on_CreateAgent(self, variables):
        return {"createAgent": {"agent": {"id": "agent1"}}}

    def on_Heartbeat(self, variables):
        running = json.loads(variables["runState"])
        commands = [
            {"type": "stop", "run_id": run} for run in running if run in self.runs and self.runs[run].stopped
        ]
        if not running:
            commands = [self.commands.pop(0) if self.commands else {"type": "exit"}]
        return {"agentHeartbeat": {"agent": {"id": "agent1"}, "commands": json.dumps(commands)}}

    def run(self, name: str) -> RunAtServer:
        return self.runs.setdefault(name, RunAtServer())

    def on_UpsertBucket(self, variables):
        name = variables["name"] or variables["id"]
        run = self.run(name)
        run.variables = variables
        if variables.get("config"):
            run.config = {key: item["value"] for key, item in json.loads(variables["config"]).items()}
        project = {"name": variables["project"] or "uncategorized", "entity": {"name": "team"}}
        bucket = {"id": name, "name": name, "displayName": name, "sweepName": None, "project": project}
        return {"upsertBucket": {"bucket": bucket | {"historyLineCount": len(run.lines)}, "inserted": True}}

    def on_RunResumeStatus(self, variables):
        run = self.runs.get(variables["name"])
        if run is None:
            return {"model": {"bucket": None}}
        tail = json.dumps([json.dumps(line) for line in run.lines[-1:]])
        config = json.dumps({key: {"value": value} for key, value in run.config.items()})
        bucket = {"name": variables["name"], "historyLineCount": len(run.lines), "historyTail": tail}
        bucket |= {"eventsLineCount": 0, "eventsTail": "[]", "logLineCount": 0, "config": config, "tags": []}
        bucket |= {"summaryMetrics": json.dumps(run.summary), "wandbConfig": json.dumps({"t": 1})}
        return {"model": {"bucket": bucket}}

    def on_RunStoppedStatus(self, variables):
        return {"project": {"run": {"stopped": self.run(variables.get("run") or variables["runId"]).stopped}}}

    def on_CreateRunFiles(self, variables):
        files = [{"name": name, "uploadUrl": f"{self.url}/file"} for name in variables["files"]]
        return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}

    def stream(self, name: str, body: dict[str, Any]) -> None:
        """Takes what a run uploads as it goes."""
        run = self.run(name)
        history = body.get("files", {}).get("wandb-history.jsonl")
        if history:
            run.lines[history["offset"] :] = [json.loads(line) for line in history["content"]]
        summary = body.get("files", {}).get("wandb-summary.json")
        if summary:
            run.summary = json.loads(summary["content"][-1])
        run.preempting = run.preempting or bool(body.get("preempting"))
        if body.get("complete"):
            run.exit_code = body["exitcode"]


class Handler(BaseHTTPRequestHandler):
    """Takes POST /graphql and POST /files/ENTITY/PROJECT/RUN/file_stream."""

    server: Server
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.server.silent.is_set():
            self.server.closed.wait()
            return
        if self.path == "/graphql":
            answer: Any = {"data": self.server.answer(body["query"], body.get("variables") or {})}
        else:
            self.server.stream(self.path.split("/")[4], body)
            answer = {}
        content = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_) -> None:
        """Says nothing."""
