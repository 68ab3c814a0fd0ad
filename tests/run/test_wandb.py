"""W&B beside the run folder: never imported when it is off, and every line once when it is on."""

import itertools
import json
import os
import signal
import struct
import sys
import threading
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
from fake_wandb import KEY, Server, end_wandb
from small_runs import PENDULUM, assert_same_run, rows, train_small

from tdmpc_prune.cli import main
from tdmpc_prune.config import WandbConfig
from tdmpc_prune.errors import Interrupted
from tdmpc_prune.wandb_sink import wandb_mode


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


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1:9", "online"), ("127.0.0.1", "offline"), ("api.wandb.ai", "offline")]
)
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
    path.write_text(f"machine 127.0.0.1:9 login user password {'0' * 40}\n")
    path.chmod(0o600)
    assert mode() == "online"


def test_nobody_has_a_home(monkeypatch):
    def homeless(path):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("NETRC")
    monkeypatch.setattr(Path, "expanduser", homeless)
    monkeypatch.delenv("HOME")
    assert wandb_mode(WandbConfig(mode="auto")) == "offline"


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


class Run:
    """What the code uses of a W&B run; `starting_step` lines have reached the server already."""

    url = "https://example.invalid/run"

    def __init__(self, step):
        self.starting_step = step
        self.lines, self.defined, self.summary, self.exit_codes = [], [], {}, []
        self.fails = lambda what: None

    def define_metric(self, name, step_metric=None):
        self.defined.append((name, step_metric))

    def log(self, row, **named):
        assert not named  # no step of its own: W&B would drop what comes late
        self.fails("log")
        self.lines.append(row)

    def finish(self, exit_code=None):
        self.fails("finish")
        self.exit_codes.append(exit_code)


@pytest.fixture
def server(monkeypatch):
    """A W&B in memory; `server.known` is what `run.starting_step` says at the next start.

    `server.errors["log"] = {3: error}`: the third call raises it (or does what it says, if it is a function).
    """
    fake = SimpleNamespace(runs=[], arguments=[], known=0, errors={}, calls=Counter(), teardowns=0)

    def fails(what):
        fake.calls[what] += 1
        error = fake.errors.get(what, {}).get(fake.calls[what])
        if callable(error):
            error()
        elif error:
            raise error

    def init(**arguments):
        fake.arguments.append(arguments)
        fails("init")
        fake.runs.append(Run(fake.known if arguments["mode"] == "online" else 0))
        fake.runs[-1].fails = fails
        return fake.runs[-1]

    def teardown(exit_code=None):
        fake.teardowns += 1
        fails("teardown")

    module = SimpleNamespace(
        init=init, Settings=lambda **named: named, setup=lambda settings: None, teardown=teardown
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
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


# W&B fails


def refuse(said):
    return RuntimeError(f"{said}\n  (Authorization: {KEY})")


FAILURES = {
    "no server at the start": {"init": {1: refuse("connection refused")}},
    "the first row": {"log": {1: refuse("service died")}},
    "a row in the middle": {"log": {4: OSError(28, "No space left on device")}},
    "the last row": {"log": {8: ConnectionResetError("Connection lost")}},
    "a row, and what clears up after it": {"log": {3: refuse("x")}, "teardown": {1: refuse("y")}},
}
NO_WAY = {
    "never starts": {"init": dict.fromkeys((1, 2), OSError(28, "No space left on device"))},
    "a row, and no way back": {"log": {2: refuse("x")}, "init": {2: refuse("y")}},
    "a row, and the next one": {"log": {3: refuse("x"), 4: refuse("y")}},
}


def assert_unharmed(folder, capsys, code):
    """The run is finished and complete, and said nothing but one warning of W&B."""
    out, err = capsys.readouterr()
    assert code == 0, err
    assert json.loads(out)["env_step"] >= 60
    warnings = [line for line in err.splitlines() if line.startswith("warning: W&B")]
    assert len(warnings) == 1, err
    assert KEY not in out + err
    assert "Traceback" not in err
    assert (folder / "summary.json").exists()
    return warnings[0]


def run_online(folder, *more):
    return main(["train", *SHORT, "--run-dir", str(folder), *ONLINE, "--json", *more])


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The environment steps of all rows of the run that the tests below disturb."""
    path = tmp_path_factory.mktemp("quiet") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tdmpc_prune.train.plot_run", lambda folder: None)
        train_small(SHORT, path)
    return [row["env_step"] for row in rows(path)]


@pytest.mark.parametrize("case", FAILURES)
def test_a_run_goes_on_offline_with_all_its_lines(case, server, folder, no_plot, capsys, expected):
    server.errors = FAILURES[case]
    warning = assert_unharmed(folder, capsys, run_online(folder))
    assert "goes on offline" in warning
    assert f"wandb sync {folder}/wandb/offline-run-*" in warning
    assert [row["env_step"] for row in rows(folder)] == expected
    assert [arguments["mode"] for arguments in server.arguments] == ["online", "offline"]
    assert server.arguments[0]["id"] == server.arguments[1]["id"]
    assert server.runs[-1].lines == sent(folder)
    assert server.runs[-1].exit_codes == [0]
    assert server.teardowns == 1


@pytest.mark.parametrize("case", NO_WAY)
def test_a_run_goes_on_without(case, server, folder, no_plot, capsys, expected):
    server.errors = NO_WAY[case]
    warning = assert_unharmed(folder, capsys, run_online(folder))
    assert "goes on without it" in warning
    assert str(folder / "metrics.jsonl") in warning
    assert [row["env_step"] for row in rows(folder)] == expected


def test_offline_that_fails_goes_on_without(server, folder, no_plot, capsys, expected):
    server.errors = {"log": {5: OSError(28, "No space left on device")}}
    warning = assert_unharmed(folder, capsys, run_online(folder, "--wandb.mode", "offline"))
    assert "No space left" in warning
    assert len(server.arguments) == 1
    assert [row["env_step"] for row in rows(folder)] == expected


@pytest.mark.parametrize("what", ["raises", "hangs", "summary raises"])
def test_an_end_that_fails(what, server, folder, no_plot, capsys, monkeypatch, expected):
    never = threading.Event()
    if what == "summary raises":
        monkeypatch.setattr(
            Run, "summary", property(lambda self: 1 / 0, lambda self, value: None), raising=False
        )
    else:
        server.errors = {"finish": {1: never.wait if what == "hangs" else refuse("lost")}}
    monkeypatch.setattr("tdmpc_prune.wandb_sink.SECONDS_TO_FINISH", 0.2)
    monkeypatch.setattr("tdmpc_prune.wandb_sink.SECONDS_OF_GRACE", 0.2)
    warning = assert_unharmed(folder, capsys, run_online(folder))
    never.set()
    assert f"wandb sync {folder}/wandb/run-*" in warning
    assert [row["env_step"] for row in rows(folder)] == expected
    assert server.runs[0].lines == sent(folder)


def test_a_resumed_run_sends_what_could_not_be_sent(server, folder, interrupt, no_plot):
    """And what was kept for `wandb sync` meanwhile is gone: it would arrive twice."""
    server.errors = {"log": {3: refuse("away")}}
    interrupt(80)
    with pytest.raises(Interrupted):
        train_small(SHORT, folder, *ONLINE)
    kept = folder / "wandb" / "offline-run-20261125_120000-abc"
    kept.mkdir(parents=True)
    (kept / "run.wandb").write_text("")
    server.known = len(server.runs[0].lines)
    assert server.known == 2
    interrupt(0)
    train_small(SHORT, folder, *ONLINE)
    assert server.runs[0].lines + server.runs[2].lines == sent(folder)
    assert not kept.exists()


def test_a_wandb_that_cannot_be_imported(folder, no_plot, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert "goes on without it" in assert_unharmed(folder, capsys, run_online(folder))


@pytest.mark.parametrize(
    ("how", "remedy"), [("online", "choose --wandb.mode auto"), ("auto", "unset WANDB_MODE")]
)
def test_online_without_a_login_is_refused(how, remedy, folder, monkeypatch, capsys):
    """At once; and nothing is written."""
    if how == "auto":
        monkeypatch.setenv("WANDB_MODE", "online")
    assert main(["train", *SHORT, "--run-dir", str(folder), "--wandb.mode", how]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert f"wandb login, or {remedy}" in err
    assert not folder.exists()


def test_the_login_of_a_settings_file_counts(folder, server, monkeypatch, no_plot):
    """W&B knows more ways to log in than a key: it is asked before anybody is refused."""
    monkeypatch.delenv("WANDB_API_KEY")
    sys.modules["wandb"].login = lambda prompt: prompt is False
    train_small(SHORT, folder, *ONLINE)
    assert len(server.runs) == 1


# The real W&B and a server


@pytest.fixture
def real(monkeypatch):
    """A server that the real W&B talks to, from this process."""
    pytest.importorskip("wandb")
    end_wandb()
    with Server() as server:
        for name, value in server.environment().items():
            monkeypatch.setenv(name, value)
        yield server
        end_wandb()


def test_a_server_gets_every_line_once(real, folder, interrupt, no_plot):
    """The real client: of a run that was interrupted, and of the one that resumes it."""
    interrupt(80)
    with pytest.raises(Interrupted):
        train_small(SHORT, folder, *ONLINE)
    (run,) = real.runs.values()
    assert run.exit_code == 1
    assert 4 < len(run.lines) < len(expected_lines := sent(folder)) + 1
    interrupt(0)
    summary = train_small(SHORT, folder, *ONLINE)
    assert list(real.runs) == [(folder / "wandb_id.txt").read_text()]
    assert [own(line) for line in run.lines] == sent(folder)
    assert [own(line) for line in run.lines][: len(expected_lines)] == expected_lines
    assert run.exit_code == 0
    assert run.summary["eval/return"] == summary["return"] == run.summary["return"]
    assert run.config["prune"]["sparsity"] == 0.8


def own(line):
    """A line of W&B's history without W&B's own fields."""
    return {key: value for key, value in line.items() if not key.startswith("_")}


def test_a_server_that_never_answers(real, folder, no_plot, capsys, monkeypatch, expected):
    """The run begins after a while, and W&B's own process keeps it for later."""
    monkeypatch.setattr("tdmpc_prune.wandb_sink.SECONDS_TO_START", 1)
    real.silent.set()
    warning = assert_unharmed(folder, capsys, run_online(folder))
    assert "goes on offline" in warning
    (file,) = folder.glob("wandb/offline-run-*/*.wandb")
    assert history(file) == sent(folder)
    assert [row["env_step"] for row in rows(folder)] == expected


def test_a_server_that_goes_silent(real, folder, no_plot, capsys, monkeypatch, expected):
    from tdmpc_prune.training import Training

    evaluate = Training.evaluate

    def then_silent(self, check):
        row = evaluate(self, check)
        if self.progress.env_step > 30:
            real.silent.set()
        return row

    monkeypatch.setattr(Training, "evaluate", then_silent)
    monkeypatch.setattr("tdmpc_prune.wandb_sink.SECONDS_TO_FINISH", 1)
    warning = assert_unharmed(folder, capsys, run_online(folder))
    assert f"wandb sync {folder}/wandb/run-*" in warning
    (file,) = folder.glob("wandb/run-*/*.wandb")
    assert history(file) == sent(folder)
    assert [row["env_step"] for row in rows(folder)] == expected


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_wandbs_own_process_dies(mode, real, folder, no_plot, capsys, monkeypatch, expected):
    from tdmpc_prune.logger import Logger

    evaluation = Logger.evaluation

    def kill(self, env_step, *rest):
        if 30 < env_step < 60:
            for child in list(children("wandb-core")):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
        evaluation(self, env_step, *rest)

    monkeypatch.setattr(Logger, "evaluation", kill)
    warning = assert_unharmed(folder, capsys, run_online(folder, "--wandb.mode", mode))
    assert [row["env_step"] for row in rows(folder)] == expected
    if mode == "online":
        (file,) = folder.glob("wandb/offline-run-*/*.wandb")
        assert history(file) == sent(folder)
    else:
        assert "goes on without it" in warning


def children(name):
    """Processes of that name that this one has started."""
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            for child in file.read().split():
                with open(f"/proc/{child}/comm") as comm:
                    if comm.read().strip() == name:
                        yield int(child)


@pytest.mark.parametrize("login", ["variable", "netrc"])
@pytest.mark.parametrize("silent", [False, True])
def test_the_key_is_nowhere(silent, login, real, folder, tmp_path, no_plot, capfd, monkeypatch):
    """Not in any file of the run, not in what it says, not in what it sends but where it logs in."""
    if login == "netrc":
        monkeypatch.delenv("WANDB_API_KEY")
        (tmp_path / "home" / "netrc").write_text(
            f"machine 127.0.0.1:{real.server_port} login user password {KEY}\n"
        )
        (tmp_path / "home" / "netrc").chmod(0o600)
    if silent:  # otherwise a busy machine may well take a second
        monkeypatch.setattr("tdmpc_prune.wandb_sink.SECONDS_TO_START", 1)
        real.silent.set()
    assert run_online(folder) == 0
    out, err = capfd.readouterr()
    assert KEY not in out + err
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert KEY.encode() not in path.read_bytes(), path
    assert KEY not in json.dumps([vars(run) for run in real.runs.values()])
    assert bool(real.runs) is not silent


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
    """The rows that a .wandb file holds in the end, without W&B's own fields."""
    end_wandb()  # a finished run's last rows may still be on their way to the file
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
