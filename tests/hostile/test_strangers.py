"""Runs that somebody made to do harm: one line, exit code 2, nothing allocated, nothing executed, nothing written."""

import gzip
import json
import os
import re
import resource
import shutil
import struct
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from agents.tdmpc.agent import TDMPC
from agents.tdmpc.config import DEBUG
from agents.tdmpc.world_model import architecture
from benchmarks.fuzz import MODEL, RUN, STATE, TRAINING
from tdmpc_prune import cli
from tdmpc_prune.checkpoint import find, load_agent, load_generator
from tdmpc_prune.errors import UserError
from tdmpc_prune.reading import JSON_BYTES, read_json

VERBS = {
    "evaluate": ["evaluate", "RUN", "--episodes", "1", "--plans", "0"],
    "validate": ["validate", "RUN", "--subsets", "0", "--batches", "1", "--batch-size", "4"],
    "sensitivity": ["sensitivity", "RUN", "--shares", "0.5", "--batches", "1", "--episodes", "1"],
    "stability": ["stability", "RUN", "--starts", "2", "--steps", "2"],
    "export": ["export", "RUN", "--out", "OUT"],
    "resume": [*RUN, "--run-dir", "RUN"],
    "init-from": [*RUN, "--init-from", "RUN", "--run-dir", "OUT"],
    "report": ["report", "RUN", "--out", "OUT", "--latency", "none"],
}
CHECKPOINT_VERBS = [verb for verb in VERBS if verb != "report"]


@pytest.fixture
def refused(run, tmp_path, capfd):
    """Runs a verb on the run, which must refuse it; returns its one line."""

    def refuse(verb, path=run):
        places = {"RUN": str(path), "OUT": str(tmp_path / "out")}
        words = [places.get(word, word) for word in VERBS[verb]]
        code = cli.main(words if "--threads" in words else [*words, "--threads", "1"])
        out, err = capfd.readouterr()
        assert code == 2, err
        assert out == ""
        assert err.count("\n") == 1
        assert err[:-1].isprintable()
        assert len(err) < 700
        assert not (tmp_path / "out").exists()
        return err

    return refuse


def change(checkpoint, *place, value):
    """Another value in the state; DELETE: none."""
    state = json.loads((checkpoint / STATE).read_text())
    inner = state
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (checkpoint / STATE).write_text(json.dumps(state))


NAN, INF = float("nan"), float("inf")
STATES = {
    "a billion units": (["architecture", "encoder"], [4, 10**9, 7], "architecture.encoder.1"),
    "a million units": (["architecture", "encoder"], [4, 10**6, 7], "widths of encoder"),
    "more updates than steps": (["updates"], 10**6, "1000000 updates"),
    "a unit more": (["architecture", "encoder"], [4, 17, 4], "widths of encoder"),
    "a layer more": (["architecture", "encoder"], [4, 5, 5, 4], "widths of encoder"),
    "layers without end": (["architecture", "encoder"], [1] * 10**5, "architecture.encoder"),
    "no layer": (["architecture", "encoder"], [], "architecture.encoder"),
    "half a unit": (["architecture", "encoder"], [4, 2.5, 7], "architecture.encoder.1"),
    "minus a unit": (["architecture", "encoder"], [4, -1, 7], "architecture.encoder.1"),
    "true units": (["architecture", "encoder"], [4, True, 7], "architecture.encoder.1"),
    "a component more": (["architecture", "q999"], [4, 4], "components"),
    "a component that is no number": (["architecture", "qx"], [4, 4], "components"),
    "widths that are words": (["architecture", "encoder"], ["4", "5", "7"], "architecture.encoder.0"),
    "settings of a giant": (["agent", "hidden_dim"], 10**9, "hidden_dim is 1000000000"),
    "a trillion samples": (["agent", "planner", "num_samples"], 10**12, "num_samples is 1000000000000"),
    "plans that no memory holds": (["agent", "planner", "num_samples"], 10**6, "num_samples"),
    "a horizon of a billion": (["agent", "horizon"], 10**9, "horizon is 1000000000"),
    "a batch of a billion": (["agent", "batch_size"], 10**9, "batch_size is 1000000000"),
    "a replay of a trillion": (["agent", "replay", "capacity"], 10**12, "capacity is 1000000000000"),
    "a learning rate of NaN": (["agent", "lr"], NAN, "lr is nan"),
    "a spread beyond float32": (["agent", "planner", "max_std"], 1e308, "max_std"),  # the fuzzer's find
    "a learning rate without end": (["agent", "lr"], INF, "lr is inf"),
    "observations of another task": (["obs_dim"], 5, "5 observations"),
    "a billion observations": (["obs_dim"], 10**9, "obs_dim"),
    "no actions": (["action_dim"], 0, "action_dim"),
    "an action repeat of a billion": (["action_repeat"], 10**9, "action_repeat"),
    "minus an update": (["updates"], -1, "updates"),
    "updates with a point": (["updates"], 1e30, "updates"),
    "updates of 41 digits": (["updates"], 10**40, "41 digits"),
    "steps that are a word": (["progress", "env_step"], "80", "progress.env_step"),
    "minus a step": (["progress", "agent_step"], -1, "progress.agent_step"),
    "a step of 1e30": (["progress", "env_step"], 1e30, "progress.env_step"),
    "progress that is a list": (["progress"], [], "progress"),
    "a seed below 0": (["seed"], -1, "seed"),
    "a seed that is a word": (["seed"], "1", "seed"),
    "a task that is a path": (["task"], "../../../etc/passwd", "unknown task"),
    "somebody's own task": (
        ["task"],
        "Robot-v0",
        "learned Robot-v0, which is no task here: .*name the module",
    ),
    "a task that is markup": (["task"], "<script>alert(1)</script>", "unknown task"),
    "a task that a terminal obeys": (["task"], "\x1b]0;owned\x07\x1b[2J", "unknown task"),
    "a task that is half a letter": (["task"], "\ud800", "task: Input should be a valid string"),
    "a task that is a number": (["task"], 7, "task"),
    "a criterion that is markup": (["criterion"], "<b>", "criterion"),
    "a pruner that is a list": (["pruner"], [], "pruner"),
    "a return without end": (["pruner", "calibrated_at"], INF, "pruner.calibrated_at"),
    "minus an event": (["pruner", "events"], -1, "pruner.events"),
    "widths of before that are words": (["pruner", "initial_widths", "latent"], "8", "initial_widths.latent"),
    "a removal that is a word": (["event_row"], {"prune/event": "x"}, "event_row"),
    "a removal of nothing": (["event_row"], {"prune/event": 1e308}, "event_row is of no removal"),
    "minus a byte": (["metrics_bytes"], -1, "metrics_bytes"),
    "an older version": (["schema"], 0, "its format is 0"),
    "a newer version": (["schema"], 2, "install the version that wrote it"),
    "a version that is a word": (["schema"], "1", "its format is '1'"),
    "a version that is true": (["schema"], [1], "its format is [1]"),
}


COUNTERS = {
    "recovery without end": (["progress", "recovery_updates"], 10**12, "updates are to be made at once"),
    "steps without end": (["progress", "agent_step"], 10**12, "updates are to be made at once"),
    "both": (["progress"], {"env_step": 10**12, "agent_step": 10**12}, "to be made at once"),
    "removals without end": (["pruner", "events"], 10**12, "1,000,000,000,000 events"),
}


def test_a_run_from_a_gpu_goes_on(run, checkpoint):
    """Its random numbers begin anew there, the same each time."""
    file, seeds = checkpoint / TRAINING, []
    for _ in range(2):
        generator = torch.Generator()
        load_generator(generator, torch.arange(16, dtype=torch.uint8))
        seeds.append(generator.initial_seed())
    assert seeds[0] == seeds[1] != torch.Generator().initial_seed()
    for name in ("rng.agent", "rng.replay"):
        training(name, lambda state: torch.arange(16, dtype=torch.uint8))(file)
    assert cli.main([*RUN, "--run-dir", str(run)]) == 0
    assert json.loads((run / "summary.json").read_text())["env_step"] >= 80


@pytest.mark.parametrize("case", COUNTERS)
def test_counters(case, refused, checkpoint):
    """A resumed run would make updates, or wait for removals, for ever."""
    place, value, said = COUNTERS[case]
    change(checkpoint, *place, value=value)
    assert said in refused("resume")


@pytest.mark.parametrize("case", STATES)
def test_states(case, refused, checkpoint, monkeypatch):
    """Refused before an agent is built."""
    place, value, said = STATES[case]
    change(checkpoint, *place, value=value)
    monkeypatch.setattr(TDMPC, "__init__", lambda *_, **__: pytest.fail("an agent was built"))
    assert re.search(re.escape(said).replace(r"\.\*", ".*"), refused("evaluate"))


TEXTS = {
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 100_000,
    "long": b'{"schema": 1, "x": "' + b"a" * (2 << 20) + b'"}',
    "a list": b"[]",
    "a word": b'"schema"',
    "nothing": b"",
    "null": b"null",
    "a number without end": b'{"schema": ' + b"1" * 100_000 + b"}",
    "no text": b"\xff\xfe\x00",
    "code": b"__import__('os').system('touch owned')",
    "a pickle": b"cos\nsystem\n(S'touch owned'\ntR.",
}


@pytest.mark.parametrize("verb", CHECKPOINT_VERBS)
@pytest.mark.parametrize("case", TEXTS)
def test_texts_that_are_no_state(case, verb, refused, checkpoint):
    (checkpoint / STATE).write_bytes(TEXTS[case])
    assert "cannot be loaded" in refused(verb)


def header(file, edit):
    """Rewrites the header of a safetensors file."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    text = json.dumps(edit(json.loads(content[8 : 8 + length]))).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


FIRST = "online.encoder.0.weight"


def entry(**values):
    return lambda file: header(file, lambda head: head | {FIRST: head[FIRST] | values})


def tensors(edit):
    def damage(file):
        stored = load_file(file)
        edit(stored)
        save_file(stored, file)

    return damage


def cast(dtype):
    return tensors(lambda t: t.update({FIRST: t[FIRST].to(dtype)}))


def pad(file):
    """The header is right, but goes on with spaces."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    text = content[8 : 8 + length] + b" " * (2 << 20)
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


def claim(length):
    return lambda file: file.write_bytes(struct.pack("<Q", length) + file.read_bytes()[8:])


WEIGHTS = {
    "a header of 2^63 bytes": (claim(2**63), "header"),
    "a header of 2 MiB": (pad, "more than 1,048,576"),
    "a header without end": (claim(2**20 - 1), "header"),
    "shapes that overflow": (entry(shape=[2**62, 4]), "header"),
    "negative shapes": (entry(shape=[-1, 4]), "header"),
    "offsets upside down": (entry(data_offsets=[100, 0]), "header"),
    "offsets past the end": (entry(data_offsets=[0, 2**40]), "header"),
    "overlapping tensors": (entry(data_offsets=[0, 8]), "header"),
    "a type that is none": (entry(dtype="PICKLE"), "header"),
    "float64": (cast(torch.float64), "F64"),
    "float16": (cast(torch.float16), "F16"),
    "bfloat16": (cast(torch.bfloat16), "BF16"),
    "int8": (cast(torch.int8), "I8"),
    "bool": (cast(torch.bool), "BOOL"),
    "NaN": (tensors(lambda t: t[FIRST].fill_(torch.nan)), FIRST),
    "infinity": (tensors(lambda t: t[FIRST].view(-1)[-1:].fill_(-torch.inf)), FIRST),
    "a tensor less": (tensors(lambda t: t.pop(FIRST)), "not there"),
    "a tensor more": (tensors(lambda t: t.update(extra=torch.zeros(1))), "extra"),
    "a target less": (tensors(lambda t: t.pop(FIRST.replace("online", "target"))), "target.encoder.0.weight"),
    "another shape": (tensors(lambda t: t.update({FIRST: t[FIRST].T.contiguous()})), FIRST),
    "a name that a terminal obeys": (tensors(lambda t: t.update({"\x1b[2J": torch.zeros(1)})), "\\x1b[2J"),
    "a pickle": (lambda f: f.write_bytes(b"\x80\x04cposix\nsystem\n"), "cannot be loaded"),
}


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights(case, refused, checkpoint):
    damage, said = WEIGHTS[case]
    damage(checkpoint / MODEL)
    assert said in refused("evaluate")


def training(end, edit):
    """Changes the first tensor whose name ends like this."""

    def damage(file):
        stored = load_file(file)
        name = next((name for name in sorted(stored) if name.endswith(end)), end)
        stored[name] = edit(stored.get(name)).clone().contiguous()
        save_file(stored, file)

    return damage


ALL = ("resume", "validate")
LEARNED = {
    "replay columns of different lengths": (training("replay.reward", lambda t: t[:-1]), ALL, "reward"),
    "a replay of other observations": (training("replay.obs", lambda t: t[:, :2]), ALL, "obs"),
    "NaN in the replay": (training("replay.obs", lambda t: t * torch.nan), ALL, "obs"),
    "priorities of NaN": (training("replay.priority", lambda t: t * torch.nan), ALL, "priority"),
    "priorities below 0": (training("replay.priority", lambda t: t - 1), ALL, "priorities"),
    "a sequence that starts at the end": (training("replay.priority", lambda t: t + 1), ALL, "priorities"),
    "a cursor before the start": (training("replay.cursor", lambda t: t * 0 - 1), ALL, "cursor"),
    "a cursor past the end": (training("replay.cursor", lambda t: t + 10**6), ALL, "cursor"),
    "moments of another shape": (training(".exp_avg", lambda t: t.flatten()[:1]), ALL[:1], "exp_avg"),
    "moments of NaN": (training(".exp_avg_sq", lambda t: t * torch.nan), ALL[:1], "exp_avg_sq"),
    "moments in float64": (training(".exp_avg", lambda t: t.double()), ALL[:1], "float64"),
    "random numbers of no generator": (training("rng.agent", lambda t: t[:7]), ALL[:1], "cannot be loaded"),
    "sums of losses that are lists": (
        training("losses.count", lambda t: torch.zeros(3)),
        ALL[:1],
        "losses.count",
    ),
    "sums of losses of NaN": (
        training("losses.count", lambda t: torch.tensor(torch.nan)),
        ALL[:1],
        "tensor losses.count is no number",
    ),
    "scores of NaN": (
        training("pruner.averages.raw", lambda t: t * torch.nan),
        (*ALL, "sensitivity"),
        "averages.raw",
    ),
    "posteriors without end": (
        training("pruner.energy.sum", lambda t: t + torch.inf),
        (*ALL, "sensitivity"),
        "not finite",
    ),
    "random numbers of another kind": (
        training("rng.replay", lambda t: t.float()),
        ALL[:1],
        "no state of random",
    ),
    "an episode before the first": (training("collector.episode", lambda t: t * 0 - 1), ALL[:1], "episode"),
    "scores of other units": (
        training("pruner.averages.raw", lambda t: t[:, :1]),
        ("resume", "validate"),
        "units",
    ),
}


@pytest.mark.parametrize("case", LEARNED)
def test_what_was_learned(case, refused, checkpoint):
    damage, verbs, said = LEARNED[case]
    damage(checkpoint / TRAINING)
    for verb in verbs:
        assert said in refused(verb)


def test_no_random_numbers_at_all(refused, checkpoint):
    tensors(lambda stored: stored.pop("rng.agent"))(checkpoint / TRAINING)
    assert "rng.agent" in refused("resume")


# Places


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("name", [STATE, MODEL])
@pytest.mark.parametrize("verb", CHECKPOINT_VERBS)
def test_a_pipe_in_place_of_a_file(name, verb, refused, checkpoint):
    """Opening it would wait for ever."""
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    refused(verb)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no /dev/zero here")
@pytest.mark.parametrize("name", [STATE, MODEL])
@pytest.mark.parametrize("verb", CHECKPOINT_VERBS)
def test_a_device_in_place_of_a_file(name, verb, refused, checkpoint):
    (checkpoint / name).unlink()
    (checkpoint / name).symlink_to("/dev/zero")
    refused(verb)


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "summary.json"])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "deep", "huge line", "list"])
def test_reports_of_files_that_are_none(name, kind, refused, run):
    path = run / name
    path.unlink(missing_ok=True)
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "folder":
            path.mkdir()
        case "deep":
            path.write_bytes(b"[" * 100_000 + b"\n")
        case "huge line":
            with path.open("wb") as file:
                file.truncate(1 << 40 if name == "metrics.jsonl" else 1 << 30)  # zeros that take no room
        case _:
            path.write_text("[]\n")
    refused("report")


def test_a_checkpoint_that_is_a_link_to_elsewhere(refused, run, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    find(run).rename(elsewhere)
    (elsewhere / STATE).write_text("secret = 7\n")
    (run / "checkpoints" / "000009").symlink_to(elsewhere)
    assert "secret" not in refused("evaluate")


@pytest.mark.parametrize(
    "name",
    [
        *("metrics.jsonl", "lock", "wandb_id.txt", "plots", "summary.json", "plots/a.png"),
        *("checkpoints/partial", "checkpoints/000099"),
    ],
)
def test_no_link_is_written_through(name, refused, run, tmp_path):
    """A resumed run would cut the file off that it points to, or write to it."""
    precious = tmp_path / "precious"
    precious.write_text("precious\n" * 100_000)
    (run / name).parent.mkdir(exist_ok=True)
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(precious)
    assert f"a link ({Path(name).name})" in refused("resume")
    assert precious.read_text() == "precious\n" * 100_000


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *(
            ("metrics.jsonl", "folder"),
            ("metrics.jsonl", "pipe"),
            ("summary.json", "folder"),
            ("lock", "folder"),
        ),
        *(
            ("summary.json.partial", "folder"),
            ("config.json", "folder"),
            ("plots", "file"),
        ),
        *(("checkpoints", "file"), ("checkpoints/partial", "file"), ("checkpoints/partial", "pipe")),
    ],
)
def test_what_is_in_the_place_of_a_runs_own(name, kind, refused, run):
    """Known before it trains, not when it comes to write there."""
    path = run / name
    shutil.rmtree(path, ignore_errors=True)
    path.unlink(missing_ok=True)
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case _:
            path.touch()
    assert f"{path} is no {'file' if kind == 'folder' or name == 'metrics.jsonl' else 'folder'}" in refused(
        "resume"
    )


def test_a_lock_alone_that_is_a_link(refused, tmp_path):
    folder, precious = tmp_path / "folder", tmp_path / "precious"
    folder.mkdir()
    precious.write_text("precious")
    (folder / "lock").symlink_to(precious)
    refused("resume", folder)
    assert precious.read_text() == "precious"


def test_metrics_that_a_summary_could_not_read(refused, run):
    """Known now, and not when the run has made all its steps."""
    metrics = run / "metrics.jsonl"
    content = metrics.read_bytes()
    metrics.write_bytes(b"x" + content[1:])
    assert "line 1 of metrics.jsonl" in refused("resume")


@pytest.mark.parametrize(
    "content", ["{}", "[]", "[" * 100_000, '{"env_step": "many"}', '{"env_step": null}', "\0"]
)
def test_summaries_that_are_none(content, refused, run):
    (run / "summary.json").write_text(content)
    assert "summary.json" in refused("resume")


def test_numbers_that_are_digits_elsewhere(run):
    """'²' is a digit to Python, but no number."""
    find(run).rename(run / "checkpoints" / "9²")
    assert load_agent(run, torch.device("cpu")).env_step < 80  # the one before


# Memory and time


@pytest.mark.parametrize("damage", ["file", "settings"])
def test_nothing_is_allocated_for_what_is_refused(damage, run, checkpoint):
    """A state of giants and a file of zeros that takes no room on disk; or settings of giants that agree."""
    if damage == "file":
        change(checkpoint, "architecture", "encoder", value=[4, 10**5, 8])
        with (checkpoint / MODEL).open("r+b") as file:
            file.truncate(1 << 42)
    else:
        state = json.loads((checkpoint / STATE).read_text())
        agent = {"latent_dim": 6_000, "encoder_dim": 6_000, "hidden_dim": 6_000, "horizon": 1}
        change(checkpoint, "agent", value=state["agent"] | agent)
        change(checkpoint, "architecture", value=architecture(replace(DEBUG, **agent), 4, 1))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tracemalloc.start()
    with pytest.raises(UserError, match="bytes, more than" if damage == "file" else "tensor "):
        load_agent(run, torch.device("cpu"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert peak < 20 << 20
    assert grown < (50 << 20 if sys.platform == "darwin" else 50 << 10)


def test_a_file_that_is_too_large_is_not_read(tmp_path):
    path = tmp_path / "config.json"
    path.touch()
    os.truncate(path, JSON_BYTES + 1)  # takes no room on the disk
    with pytest.raises(ValueError, match=r"config.json has [\d,]+ bytes, more than"):
        read_json(path)


def test_a_replay_takes_the_rows_that_it_has(run, checkpoint):
    """And not those that its settings name."""
    from tdmpc_prune.analysis.validity import load_moment

    change(checkpoint, "agent", "replay", "capacity", value=10**8)
    moment = load_moment(checkpoint, torch.device("cpu"), "auto", seed=0)
    assert moment.replay.capacity == len(moment.replay) <= 60


def test_a_gzipped_file_of_zeros_without_end(tmp_path, monkeypatch):
    from tdmpc_prune.images import load_images

    monkeypatch.setattr("tdmpc_prune.images.MOST_BYTES", 1 << 20)
    with gzip.open(tmp_path / "train-images-idx3-ubyte.gz", "wb") as file:
        file.write(b"\0\0\x08\x03" + bytes(64 << 20))
    tracemalloc.start()
    with pytest.raises(UserError, match="holds more than"):
        load_images(str(tmp_path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


def test_nothing_here_could_run_code():
    """No pickles, in any of their disguises, and no other way from data to code."""
    ways = r"\bpickle\b|torch\.load\(|allow_pickle|yaml\.(?:unsafe_|full_)?load\(|\beval\(|\bexec\(|shell=True|joblib"
    root = Path(cli.__file__).parent.parent
    files = [
        path
        for name in ("tdmpc_prune", "agents", "envs", "benchmarks", "results", "examples")
        for path in (root / name).rglob("*.py")
    ]
    assert len(files) > 80
    found = [
        (path.name, line) for path in files for line in path.read_text().splitlines() if re.search(ways, line)
    ]
    found = [(name, line) for name, line in found if ".eval(" not in line]  # PyTorch's mode of a module
    assert not found


# What is shown

MARKUP = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x1b[2J\ud800--><!--"


def test_a_report_escapes_all_that_strangers_typed(run, tmp_path, capfd):
    evil = tmp_path / "<svg onload=alert(1)>\"'\x1b[2J"
    config = json.loads((run / "config.json").read_text())
    config |= dict.fromkeys(("command", "commit", "machine"), MARKUP)
    for key in ("criterion", "allocation", "schedule"):
        config["config"]["prune"][key] = MARKUP
    config["config"] |= {"task": MARKUP, "preset": MARKUP, MARKUP: MARKUP}
    (run / "config.json").write_text(json.dumps(config))
    run.rename(evil)
    out = tmp_path / "out"
    assert cli.main(["report", str(evil), "--out", str(out), "--latency", "logged"]) == 0
    shown, said = capfd.readouterr()
    page = (out / "index.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search(r"<script|<img|<svg onload|onerror=alert\(1\)>", page)
    assert "\x1b" not in page + shown
    assert "\x1b[2J" not in said
    assert all(re.fullmatch(r"[a-z0-9.-]+\.png|index\.html", path.name) for path in out.iterdir())


def test_names_of_runs_are_shown_without_effect(run, tmp_path, capfd):
    evil = tmp_path / "\x1b]0;owned\x07\x1b[2J"
    run.rename(evil)
    for verb in ("evaluate", "validate"):
        words = [str(evil) if word == "RUN" else word for word in VERBS[verb]]
        assert cli.main([*words, "--threads", "1"]) == 0
        assert "\x1b]0;" not in "".join(capfd.readouterr())


def test_the_settings_of_a_run_hold_no_secrets(run, monkeypatch):
    """What the environment holds stays there; of the machine, its kind alone."""
    import getpass
    import platform

    from tdmpc_prune.run_folder import provenance

    for name in ("WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN"):
        monkeypatch.setenv(name, "hunter2-" + name)
    monkeypatch.setattr(sys, "argv", ["/home/anna/.venv/bin/tdmpc-prune", "train", "cartpole-swingup"])
    text = json.dumps(provenance()) + (run / "config.json").read_text()
    assert "hunter2" not in text
    assert "anna" not in text
    assert platform.node() not in json.dumps(provenance())
    assert getpass.getuser() not in json.loads(json.dumps(provenance()))["machine"]
