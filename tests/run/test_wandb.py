"""W&B beside the run folder: never imported when it is off, and every line once when it is on."""

import itertools
import json
import struct
import sys
from types import SimpleNamespace

import pytest
from small_runs import PENDULUM, assert_same_run, rows, train_small

from tdmpc_prune.cli import main
from tdmpc_prune.config import WandbConfig
from tdmpc_prune.errors import Interrupted
from tdmpc_prune.logger import wandb_mode
from tdmpc_prune.signals import StopSignals


def sent(folder):
    """What W&B gets: every line of metrics.jsonl, and evaluations once more for charts over sparsity."""
    return [
        row | ({"pareto/return": row["eval/return"]} if "eval/return" in row else {}) for row in rows(folder)
    ]


SHORT = [*PENDULUM, "--steps", "60"]


def mode(wanted="auto"):
    return wandb_mode(WandbConfig(mode=wanted))


def test_auto_without_a_login_is_offline():
    assert mode() == "offline"


def test_auto_with_a_key_is_online(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    assert mode() == "online"


@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", "online"), ("api.wandb.ai", "offline")])
def test_auto_reads_the_netrc_entry_of_its_host(host, expected, tmp_path, monkeypatch):
    path = tmp_path / "home" / "netrc"
    path.write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
    path.chmod(0o600)
    monkeypatch.setenv("NETRC", str(path))
    assert mode() == expected
    monkeypatch.delenv("WANDB_BASE_URL")
    assert mode() == ("online" if host == "api.wandb.ai" else "offline")


def test_auto_reads_netrc_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.delenv("NETRC")
    path = tmp_path / "home" / ".netrc"
    path.write_text(f"machine 127.0.0.1 login user password {'0' * 40}\n")
    path.chmod(0o600)
    assert mode() == "online"


def test_a_broken_netrc_is_no_login(tmp_path, monkeypatch):
    path = tmp_path / "home" / "netrc"
    path.write_text("machine\x00 {{{")
    assert mode() == "offline"


@pytest.mark.parametrize("wanted", ["online", "offline", "disabled"])
def test_wandb_mode_decides_for_auto_and_the_setting_over_all(wanted, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", wanted)
    assert mode() == wanted
    for setting in ("online", "offline", "disabled"):
        assert mode(setting) == setting


def test_disabled_by_the_environment_does_not_import_it(folder, monkeypatch, no_plot):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises
    train_small(PENDULUM, folder, "--steps", "20", "--wandb.mode", "auto")
    assert not (folder / "wandb").exists()
    assert not (folder / "wandb_id.txt").exists()


@pytest.fixture
def interrupt(monkeypatch):
    def at(n):
        count = itertools.count(1)

        def check(self):
            if next(count) == n:
                raise Interrupted("SIGTERM")

        monkeypatch.setattr(StopSignals, "check", check)

    return at


class Run:
    """What the code uses of a W&B run; `step` lines have reached the server already."""

    url = "https://example.invalid/run"

    def __init__(self, step):
        self.step = step
        self.lines, self.defined, self.summary, self.exit_codes = [], [], {}, []

    def define_metric(self, name, step_metric=None):
        self.defined.append((name, step_metric))

    def log(self, row, **named):
        assert not named  # no step of its own: W&B would drop what comes late
        self.lines.append(row)

    def finish(self, exit_code=None):
        self.exit_codes.append(exit_code)


@pytest.fixture
def server(monkeypatch):
    """A W&B in memory; `server.known` is what `run.step` says at the next start."""
    fake = SimpleNamespace(runs=[], arguments=[], known=0)

    def init(**arguments):
        fake.arguments.append(arguments)
        fake.runs.append(Run(fake.known))
        return fake.runs[-1]

    module = SimpleNamespace(init=init, Settings=lambda **settings: settings)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return fake


ONLINE = ["--wandb.mode", "online"]


def test_online_sends_every_line(server, folder, no_plot, capsys):
    summary = train_small(SHORT, folder, *ONLINE, "--wandb.project", "p", "--wandb.tags", "a", "b")
    (run,) = server.runs
    assert run.lines == sent(folder)
    assert run.defined == [("env_step", None), ("*", "env_step"), ("pareto/*", "prune/sparsity")]
    assert run.summary["return"] == summary["return"]
    assert run.exit_codes == [0]
    (arguments,) = server.arguments
    assert arguments["mode"] == "online"
    assert arguments["resume"] == "allow"
    assert arguments["id"] == (folder / "wandb_id.txt").read_text()
    assert arguments["project"] == "p"
    assert list(arguments["tags"]) == ["a", "b"]
    assert arguments["group"] == "InvertedPendulum-v5"
    assert arguments["name"] == folder.name
    assert arguments["config"]["agent"]["horizon"] == 3
    assert "https://example.invalid/run" in capsys.readouterr().err


@pytest.mark.parametrize("lost", [0, 1, 3])
def test_online_resume_sends_what_the_server_lacks(lost, server, folder, interrupt, no_plot):
    """Killed, some lines may not have arrived; the ones that did are not sent again."""
    interrupt(80)
    with pytest.raises(Interrupted):
        train_small(SHORT, folder, *ONLINE)
    first = server.runs[0].lines
    assert first == sent(folder)
    assert len(first) > 4
    assert server.runs[0].exit_codes == [1]
    server.known = len(first) - lost
    interrupt(0)
    train_small(SHORT, folder, *ONLINE)
    assert server.runs[1].lines == sent(folder)[server.known :]
    assert first[: server.known] + server.runs[1].lines == sent(folder)
    assert server.arguments[0]["id"] == server.arguments[1]["id"]
    assert server.arguments[1]["resume"] == "allow"


def test_online_resume_from_an_older_checkpoint_repeats_nothing(server, folder, monkeypatch, no_plot):
    """Killed after lines that no checkpoint holds: the server has them, and they come out the same."""
    from tdmpc_prune.training import Training

    class Killed(BaseException):
        pass

    real, count = Training.collect, itertools.count(1)

    def collect(self):
        if next(count) == 55:
            raise Killed
        return real(self)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "collect", collect)
        with pytest.raises(Killed):
            train_small(SHORT, folder, *ONLINE)
    sent = server.runs[0].lines
    saved = json.loads(next(folder.glob("checkpoints/*/state.json")).read_text())["metrics_bytes"]
    assert saved < (folder / "metrics.jsonl").stat().st_size
    server.known = len(sent)
    train_small(SHORT, folder, *ONLINE)
    together = sent + server.runs[1].lines
    assert len(together) == len(rows(folder))
    assert [row["env_step"] for row in together] == [row["env_step"] for row in rows(folder)]


def test_wandb_changes_nothing_that_is_learned(server, undisturbed, folder, no_plot):
    train_small(PENDULUM, folder, *ONLINE)
    assert_same_run(folder, undisturbed["pendulum"].path)


def records(path):
    """The records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    pb = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    data, block = path.read_bytes(), 32768
    assert data[:4] == b":W&B"
    position, parts = 7, []
    while position + 7 <= len(data):
        left = block - position % block
        if left < 7:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        parts.append(data[position + 7 : position + 7 + length])
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = pb.Record()
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record


def history(path):
    """The rows that a .wandb file holds, without W&B's own fields."""
    found = []
    for record in records(path):
        if record.WhichOneof("record_type") == "history":
            row = {
                (item.key or ".".join(item.nested_key)): json.loads(item.value_json)
                for item in record.history.item
            }
            found.append({key: value for key, value in row.items() if not key.startswith("_")})
    return found


def test_offline_resume_leaves_one_run_with_every_line_once(folder, interrupt, capsys, no_plot):
    interrupt(80)
    command = ["train", *SHORT, "--run-dir", str(folder), "--wandb.mode", "auto", "--json"]
    assert main(command) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "W&B: offline" in err
    assert f"wandb sync {folder}/wandb/offline-run-*" in err
    (first,) = (folder / "wandb").glob("offline-run-*")
    identity = (folder / "wandb_id.txt").read_text()
    assert first.name.endswith(identity)
    interrupt(0)
    assert main(command) == 0
    out, _ = capsys.readouterr()
    summary = json.loads(out)  # W&B prints nothing there
    (run,) = (folder / "wandb").glob("offline-run-*")
    assert run.name.endswith(identity)
    (file,) = run.glob("*.wandb")
    assert history(file) == sent(folder)
    stored = {}
    for record in records(file):
        if record.WhichOneof("record_type") == "summary":
            for item in record.summary.update:
                stored[item.key or ".".join(item.nested_key)] = json.loads(item.value_json)
    assert stored["return"] == summary["return"]
    assert not list(folder.parent.glob("wandb"))
