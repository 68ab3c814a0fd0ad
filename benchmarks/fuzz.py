"""Damages a run folder in thousands of ways, and opens it: everything is refused in one line, or harmless.

    python -m benchmarks.fuzz --cases 20000 --seed 1

Every case changes one file of a tiny trained run: bytes (flipped, cut, inserted), JSON (values, keys, depth), the
header of a safetensors file (names, types, shapes, offsets), or its numbers. Then it is opened as `evaluate`,
`validate`, `sensitivity`, `report` and a resumed `train` do. What raises anything but a `UserError` is a crash.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from tqdm import tqdm

from tdmpc_prune import train as training
from tdmpc_prune.analysis.report.page import make_report
from tdmpc_prune.analysis.sensitivity import Settings as SensitivitySettings
from tdmpc_prune.analysis.sensitivity import sensitivity
from tdmpc_prune.analysis.validity import Settings, load_moment, validate
from tdmpc_prune.arguments import parse_training
from tdmpc_prune.checkpoint import load_agent, moments
from tdmpc_prune.config import AnyTrainConfig
from tdmpc_prune.errors import Stopped, UserError
from tdmpc_prune.latency import plan_latency, policy_latency
from tdmpc_prune.logger import Logger
from tdmpc_prune.run_folder import RunFolder
from tdmpc_prune.training import Training

RUN = (
    *("train", "InvertedPendulum-v5", "--preset", "debug", "--agent.horizon", "3", "--agent.batch-size", "8"),
    *("--agent.replay.capacity", "60", "--agent.planner.num-samples", "16", "--agent.random-steps", "15"),
    *("--eval-episodes", "1", "--steps", "80", "--eval-every", "80", "--checkpoint-every", "40"),
    *("--prune.importance.warmup", "5", "--prune.events", "3", "--prune.eval-episodes", "1"),
    *("--prune.recovery", "3"),
    *("--threads", "1", "--device", "cpu", "--wandb.mode", "disabled"),
)
MODEL, TRAINING, STATE = "model.safetensors", "training.safetensors", "state.json"
MOST_OWED = 150
"""Updates that a run of so few steps can owe."""
ADDRESS_SPACE = 2 << 30
"""What a case may ask for beyond what the process has: what asks for more crashes it."""
CPU = torch.device("cpu")

HOSTILE: Sequence[Any] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        7,
        0.5,
        10**6,
        10**9,
        10**12,
        2**31,
        2**63,
        2**64,
        10**40,
        1e30,
        -1e30,
        1e308,
    ),
    *(
        float("nan"),
        float("inf"),
        float("-inf"),
        "",
        "1",
        "nan",
        "x" * 100_000,
        "\x1b[31mred\x1b]0;title\x07",
    ),
    *(
        "\ud800",
        "\u202e",
        "<script>alert(1)</script>",
        '"><img src=x onerror=alert(1)>',
        "../../../etc/passwd",
    ),
    *("cartpole-swingup", "autoencoder", "none", "taylor", "bayesian", "calibrated", [], {}, [[]], {"": {}}),
    *([1, 2, 3], [10**9, 10**9], {"a": 1}, [0] * 1000, {"encoder": [10**9, 10**9, 8]}),
)


@dataclass
class Outcome:
    """What a number of cases came to."""

    cases: Counter[str] = field(default_factory=Counter)
    """By what happened: `refused`, `loaded`, `crashed`."""
    crashes: list[str] = field(default_factory=list)
    """The case and the end of its traceback."""
    megabytes: float = 0.0
    """Peak memory over what opening the undamaged run takes."""
    slowest: tuple[float, str] = (0.0, "")
    """Seconds and description of the slowest case."""
    long_lines: list[str] = field(default_factory=list)
    """Messages that are not one short printable line."""


def make_run(folder: Path) -> None:
    """Trains the run that is damaged, in seconds."""
    with contextlib.redirect_stderr(io.StringIO()):
        training.train(parse_training([*RUN, "--run-dir", str(folder)]))


# Damage


def damage_bytes(content: bytes, rng: random.Random) -> bytes:
    """Some bytes flipped, cut, inserted, doubled or zeroed."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        span = rng.choice((1, 2, 8, 100, len(data)))
        match rng.randrange(6):
            case 0 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = rng.randbytes(min(span, 1000))
            case 3:
                data[at : at + span] = bytes(len(data[at : at + span]))
            case 4:
                data[at:at] = data[at : at + span]
            case _:
                del data[at : at + span]
    return bytes(data)


def damage_json(content: bytes, rng: random.Random) -> bytes:
    """A value replaced by a hostile one, a key gone, doubled or renamed, or brackets without end."""
    if rng.random() < 0.03:
        depth = rng.choice((100, 900, 5_000, 100_000))
        return rng.choice((b"[" * depth, b'{"config":' * depth, b"[" * depth + b"]" * depth))
    tree = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2))):
        place, key = rng.choice(_places(tree))
        match rng.randrange(8):
            case 0:
                del place[key]
            case 1 if isinstance(place, dict):
                place[rng.choice(("", "\x1b[31m", "x", "q9", "__class__", "schema"))] = rng.choice(HOSTILE)
            case 2 if isinstance(place, dict):
                place[str(key) + rng.choice((" ", "x", ".0"))] = place.pop(key)
            case 3:
                place[key] = [place[key]]
            case 4 if isinstance(place[key], int | float):
                place[key] = rng.choice((-place[key], place[key] + 1, place[key] * 10**6, float(place[key])))
            case _:
                place[key] = rng.choice(HOSTILE)
    return json.dumps(tree).encode()


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every container and key in a tree of JSON values."""
    found: list[tuple[Any, Any]] = []
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += [(tree, key), *_places(value)]
    return found


def damage_lines(content: bytes, rng: random.Random) -> bytes:
    """JSON of one line damaged, a line without end, or lines doubled."""
    lines = content.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    match rng.randrange(8):
        case 0:
            lines[at] = lines[at].rstrip() + rng.choice((b"", b" " * (1 << 21), b"\0" * 100))
        case 1:
            lines *= 2
        case 2:
            rng.shuffle(lines)
        case _:
            lines[at] = damage_json(lines[at], rng) + b"\n"
    return b"".join(lines)


def damage_header(content: bytes, rng: random.Random) -> bytes:
    """The header of a safetensors file changed, or its length; the numbers stay."""
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [name for name in header if name != "__metadata__"]
    name = rng.choice(names)
    entry = header[name]
    claimed = None
    match rng.randrange(9):
        case 0:
            entry["dtype"] = rng.choice(
                ("F64", "F16", "BF16", "I8", "I64", "BOOL", "U8", "F4", "nonsense", 3)
            )
        case 1:
            entry["shape"] = rng.choice(
                ([], [0], [-1], [10**9, 10**9], [2**62, 4], entry["shape"][::-1], "x", [1] * 99)
            )
        case 2:
            start, end = entry["data_offsets"]
            entry["data_offsets"] = rng.choice(
                ([end, start], [0, end], [start, 2**62], [start + 4, end + 4], [-4, end])
            )
        case 3:
            header[rng.choice((name + "x", "", "online", "\x1b[31m", "../x"))] = header.pop(name)
        case 4:
            other = rng.choice(names)
            header[name], header[other] = header[other], header[name]
        case 5:
            header[name + ".copy"] = dict(entry)
        case 6:
            claimed = rng.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1))
        case 7:
            return content[:8] + damage_bytes(content[8 : 8 + length], rng) + data
        case _:
            text = damage_json(json.dumps(header).encode(), rng)
            return struct.pack("<Q", len(text)) + text + data
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if claimed is None else claimed) + text + data


def damage_numbers(content: bytes, rng: random.Random) -> bytes:
    """A well-formed safetensors file with other numbers, types, shapes or tensors."""
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(content)
        file.flush()
        with safe_open(file.name, "pt") as stored:
            tensors = {name: stored.get_tensor(name).clone() for name in stored.keys()}  # noqa: SIM118
    name = rng.choice(sorted(tensors))
    tensor = tensors[name]
    match rng.randrange(8):
        case 0:
            del tensors[name]
        case 1:
            tensors[name] = tensor.to(
                rng.choice((torch.float64, torch.float16, torch.int8, torch.bool, torch.int64))
            )
        case 2:
            tensors[name] = tensor.flatten()[: rng.choice((0, 1, 5))].clone()
        case 3:
            tensors[name] = torch.cat([tensor.reshape(-1)] * 2)
        case 4:
            tensors[rng.choice(("online.x", "optimizer.0.999.step", "losses.evil", "replay.x", "q"))] = (
                tensor.clone()
            )
        case 5:
            tensors[name] = tensors[rng.choice(sorted(tensors))].clone()
        case _ if tensor.numel():
            values = (torch.nan, torch.inf, -1.0, 1e38, -1e38, 0.0, 255.0, 1e-38)
            flat = tensor.clone().flatten()
            at = slice(None) if rng.random() < 0.5 else rng.randrange(len(flat))
            value = rng.choice(values)
            flat[at] = value if flat.is_floating_point() else int(np.nan_to_num(value) % 256)
            tensors[name] = flat.reshape(tensor.shape)
    from safetensors.torch import save

    return save(tensors)


Damage = Callable[[bytes, random.Random], bytes]
KINDS: dict[str, Sequence[Damage]] = {
    STATE: (damage_json, damage_json, damage_json, damage_bytes),
    MODEL: (damage_header, damage_numbers, damage_bytes),
    TRAINING: (damage_header, damage_numbers, damage_numbers, damage_bytes),
    "config.json": (damage_json, damage_json, damage_bytes),
    "metrics.jsonl": (damage_lines, damage_lines, damage_bytes),
    "summary.json": (damage_json, damage_bytes),
}
WEIGHTS = {STATE: 8, MODEL: 5, TRAINING: 5, "config.json": 3, "metrics.jsonl": 2, "summary.json": 1}
"""How often each file is the one."""


# Opening


def _evaluate(run: Path) -> None:
    stored = load_agent(run, CPU)
    plan_latency(stored.agent, stored.agent_step, plans=1)
    policy_latency(stored.agent, steps=1)


def _validate(run: Path) -> None:
    moment = load_moment(moments(run)[-1], CPU, "auto", seed=0)
    # Of the units one by one there are hundreds: here it is about what is loaded.
    few = [group for group in moment.groups if group.coupling]
    settings = Settings(batch_size=4, subsets=0, episodes=1, batches=1, seed=0)
    validate(type(moment)(moment.path, moment.stored, few, moment.replay, None), settings)
    if moment.tracker:
        moment.tracker.scores("bayesian")


def _sensitivity(run: Path) -> None:
    moment = load_moment(moments(run)[-1], CPU, "auto", seed=0)
    few = [group for group in moment.groups if group.coupling]
    settings = SensitivitySettings(
        shares=[0.5], criterion="taylor", compensation="linear", ridge=0.1, episodes=1, batches=1, seed=0
    )
    sensitivity(replace(moment, groups=few), settings)


@cache
def _settings(run: Path) -> AnyTrainConfig:
    return parse_training([*RUN, "--run-dir", str(run)])


def _resume(run: Path) -> None:
    config = _settings(run)
    folder = RunFolder(run)
    folder.check(config)
    if folder.finished_summary(config) is not None:
        return
    resumed = Training(config, folder, CPU)
    try:
        for _ in range(MOST_OWED):
            if not resumed.pending_updates:
                break
            resumed.update()
        else:
            raise AssertionError("it owes updates without end")
        if resumed.removal_unlogged:
            row = resumed.removal_row(lambda: None)
            json.dumps(row)
            Logger.removal(SimpleNamespace(say=str), row)  # type: ignore[arg-type]
        for _ in range(3):
            resumed.collect()
        if resumed.replay.ready:
            resumed.update()
        resumed.episode_row()
    finally:
        resumed.close()


def _report(run: Path) -> None:
    make_report([run], run.parent / "report", "logged", CPU)


def ways(name: str, case: int) -> Sequence[Callable[[Path], None]]:
    """Who opens a run of which this file is damaged; what takes long, not every time."""
    if name in (MODEL, STATE):
        return (_evaluate, *((_resume, _validate) if case % 20 == 0 else ()))
    if name == TRAINING:
        return (_resume,) if case % 2 else (_validate, *((_sensitivity,) if case % 40 == 0 else ()))
    if name == "config.json" and case % 3:
        return (_resume, _validate)[case % 2 :]
    return (_report,) if case % 60 == 0 else (_read, _resume)[case % 2 :]


def _read(run: Path) -> None:
    from tdmpc_prune.analysis.report.groups import sections
    from tdmpc_prune.analysis.report.results import results
    from tdmpc_prune.analysis.report.runs import read_runs
    from tdmpc_prune.analysis.report.timing import Timings

    for section in sections(read_runs([run])):
        for result in results(section, Timings({}, "")):
            json.dumps(result.to_json())


def fuzz(cases: int, seed: int, *, limit_memory: bool = False, progress: bool = False) -> Outcome:
    """Makes and opens `cases` damaged runs, the same ones for the same seed."""
    outcome = Outcome()
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        run = Path(name) / "run"
        make_run(run)
        (run / "summary.json").rename(run.parent / "summary.json")
        for open_it in (_evaluate, _validate, _sensitivity, _resume, _read, _report):
            open_it(run)
        checkpoint = moments(run)[-1]
        if limit_memory:
            _limit_memory()
        before = _peak()
        for case in tqdm(range(cases), disable=not progress, file=sys.__stderr__):
            _one(random.Random(f"{seed}/{case}"), case, run, checkpoint, outcome)
        outcome.megabytes = _peak() - before
    return outcome


def _one(rng: random.Random, case: int, run: Path, checkpoint: Path, outcome: Outcome) -> None:
    name = rng.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    folder = checkpoint if name in (STATE, MODEL, TRAINING) else run
    source = run.parent / name if name == "summary.json" else folder / name
    whole = source.read_bytes()
    damage = rng.choice(KINDS[name])
    said = f"case {case}: {damage.__name__} of {name}"
    shutil.rmtree(run.parent / "report", ignore_errors=True)
    start = time.perf_counter()
    try:
        (folder / name).write_bytes(damage(whole, rng))
        result = "loaded"
        for open_it in ways(name, case):
            try:
                open_it(run)
            except (UserError, Stopped) as error:
                result = "refused"
                if len(str(error)) > 1000 or not str(error).isprintable():
                    outcome.long_lines.append(f"{said}: {error}")
            except Exception:
                result = "crashed"
                outcome.crashes.append(f"{said}, {open_it.__name__}: {traceback.format_exc()[-1500:]}")
                break
        outcome.cases[result] += 1
    finally:
        if name == "summary.json":
            (folder / name).unlink()
        else:
            source.write_bytes(whole)
    outcome.slowest = max(outcome.slowest, (time.perf_counter() - start, said))


def _peak() -> float:
    """Most memory that this process ever held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
        1 << 20 if sys.platform == "darwin" else 1 << 10
    )


def _limit_memory() -> None:
    """Makes whoever asks for far more than there is fail, instead of the machine."""
    with contextlib.suppress(OSError, ValueError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + ADDRESS_SPACE
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


def main() -> int:
    """Prints what the cases came to; 1 if any crashed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    outcome = fuzz(options.cases, options.seed, limit_memory=True, progress=True)
    for crash in outcome.crashes[:20]:
        print(crash, "\n")
    for line in outcome.long_lines[:20]:
        print(line[:500], "\n")
    counts = ", ".join(f"{outcome.cases[kind]:,} {kind}" for kind in ("refused", "loaded", "crashed"))
    seconds, which = outcome.slowest
    print(
        f"{options.cases:,} cases, seed {options.seed}: {counts}; lines too long: {len(outcome.long_lines)}"
    )
    minutes = (time.perf_counter() - start) / 60
    print(
        f"{minutes:.1f} min, {outcome.megabytes:.0f} MB over the undamaged run, slowest {seconds:.1f} s ({which})"
    )
    return 1 if outcome.crashes or outcome.long_lines else 0


if __name__ == "__main__":
    sys.exit(main())
