"""`tdmpc-prune evaluate`: what stored controllers are worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from envs.perturbations import parse_perturbations
from tdmpc_prune.commands.common import CommandConfig, formatted, short_names, show, show_table
from tdmpc_prune.config import AUTOENCODER, MOST_EPISODES, check_count, check_seed
from tdmpc_prune.errors import UserError

Found = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class EvaluateConfig(CommandConfig):
    """Evaluates stored runs: return with planner and policy, time per control step, robustness.

    All runs see the same episodes, side by side. --json prints the object of the one run, or
    {"runs": [...]} of several. Of autoencoders: their error on the test split; only device, threads and
    json mean something there.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run folders, or checkpoints, of one task."""
    reference: Path | None = None
    """Compare with this run, a dense one say, episode by episode; it is shown first."""
    episodes: int = 10
    """Episodes to run; number i starts from seed + i."""
    seed: int = 0
    """Seed of the episodes and of the planner."""
    controller: Literal["both", "planner", "policy"] = "both"
    """planner: plan at every step; policy: the policy network alone; both: one after the other."""
    perturb: str | None = None
    """Also under perturbations of the world, one at a time: NAME=AMOUNT,... or the word standard for a few of each
    (of those that the task's simulator knows).
    noise: standard deviation on observations; delay: of actions, in agent steps; mass, damping, gravity: factors."""
    plans: int = 100
    """Control steps that are timed (fewer of a slow planner: about 20 s); 0: none."""
    video: Path | None = None
    """Film the first episode of every run, side by side, into this mp4 file."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_seed(self.seed)
        if not self.runs:
            raise ValueError("there is no run to evaluate: give at least one run folder")
        check_count("episodes", self.episodes, most=MOST_EPISODES)
        check_count("plans", self.plans, least=0, most=1_000_000)
        if self.perturb is not None:
            parse_perturbations(self.perturb)
        if self.video is not None and self.video.suffix != ".mp4":
            raise ValueError(f"--video {self.video}: the file's name must end in .mp4")


def run(config: EvaluateConfig) -> int:
    """Evaluates runs and shows what was found."""
    from tdmpc_prune.checkpoint import task_of
    from tdmpc_prune.video import check_video

    if config.video is not None:
        check_video(config.video)
    paths = [*([config.reference] if config.reference else []), *config.runs]
    autoencoders = [task_of(path) == AUTOENCODER for path in paths]
    if all(autoencoders):
        return _autoencoders(config, paths)
    if any(autoencoders):
        raise UserError(f"{paths[autoencoders.index(True)]} is an autoencoder, others are not: give one kind")
    return _controllers(config)


def _controllers(config: EvaluateConfig) -> int:
    from tdmpc_prune.analysis.comparison import Protocol, compare
    from tdmpc_prune.video import caption, side_by_side, write_video

    protocol = Protocol(
        episodes=config.episodes,
        seed=config.seed,
        controllers=("planner", "policy") if config.controller == "both" else (config.controller,),
        perturbations=parse_perturbations(config.perturb) if config.perturb else (),
        plans=config.plans,
        film=config.video is not None,
    )
    found = compare(config.runs, protocol, config.compute_on(), config.reference)
    if config.video is not None:
        films = [caption(one.frames, _title(one.result)) if len(found) > 1 else one.frames for one in found]
        write_video(config.video, side_by_side(films), fps=1e3 / found[0].result["control_ms"])
    results = [one.result | {"video": str(config.video) if config.video else None} for one in found]
    if config.json:
        alone = len(config.runs) == 1 and config.reference is None
        show(results[0] if alone else {"runs": results}, as_json=True)
    else:
        _tables(results)
    return 0


def _autoencoders(config: EvaluateConfig, paths: Sequence[Path]) -> int:
    from tdmpc_prune.reconstruction import evaluate_autoencoder

    for name in ("video", "perturb"):
        if getattr(config, name) is not None:
            raise UserError(f"{paths[0]} is an autoencoder, it controls nothing: leave --{name} out")
    device = config.compute_on()
    results = [evaluate_autoencoder(path, device) for path in dict.fromkeys(paths)]
    if len(results) == 1:
        show(results[0], as_json=config.json)
    elif config.json:
        show({"runs": results}, as_json=True)
    else:
        show_table(results)
    return 0


def _title(result: Mapping[str, Any]) -> str:
    """What a film shows."""
    kind = "dense" if result["sparsity"] == 0 else f"{result['sparsity']:.0%} pruned"
    return f"{kind}: return {result['returns'][0]:.0f}"


# Tables


def _tables(found: Found) -> None:
    first = found[0]
    many = "" if first["episodes"] == 1 else "s"
    print(
        f"{first['task']}: {first['episodes']} episode{many} from seed {first['seed']}, mean return and its 95% "
        f"interval over episodes; {first['control_ms']:.0f} ms per control step\n"
    )
    names = short_names([result["run"] for result in found])
    compared = any("versus" in result for result in found)
    show_table([_summary(name, result, compared) for name, result in zip(names, found, strict=True)])
    if "latency_ms" in first:
        print(f"\nMilliseconds to choose an action ({first['controller']}), here and now:\n")
        show_table([row for name, r in zip(names, found, strict=True) for row in _latencies(name, r)])
    if "perturbed" in first:
        print(f"\nReturn under perturbations ({first['controller']}), and the share of it that is left:\n")
        show_table(_perturbed(names, found))


def _summary(name: str, result: Mapping[str, Any], compared: bool) -> dict[str, Any]:
    row: dict[str, Any] = {
        "run": name,
        "sparsity": f"{result['sparsity']:.1%}",
        "parameters": result["parameters"],
        "MACs per plan": result["plan_macs"],
        result["controller"]: _interval(result, ""),
    }
    if "policy_return" in result:
        row["policy"] = _interval(result, "policy_")
    if compared:
        row["against reference"] = _difference(result["versus"]) if "versus" in result else None
    return row


def _interval(result: Mapping[str, Any], prefix: str) -> str:
    value, low, high = (result[f"{prefix}return{end}"] for end in ("", "_low", "_high"))
    return f"{value:.1f}" if low is None else f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _difference(versus: Mapping[str, float]) -> str:
    value, low, high = (versus[f"difference{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.1f}" if low is None else f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _latencies(name: str, result: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "run": name,
            "threads": count,
            "steps": row["steps"],
            **{name: round(row[name], 2) for name in ("p50", "p95", "p99")},
            "period": round(result["control_ms"], 2),
            "in time (p99)": row["p99"] <= result["control_ms"],
        }
        for count, row in result["latency_ms"].items()
    ]


def _perturbed(names: Sequence[str], found: Found) -> list[dict[str, Any]]:
    rows = []
    for perturbation in found[0]["perturbed"]:
        row: dict[str, Any] = {"perturbation": perturbation}
        for name, result in zip(names, found, strict=True):
            if result["perturbed"][perturbation] is None:
                row[name] = "simulation broke down"
                continue
            under = result["perturbed"][perturbation]["return"]
            share = f" ({under / result['return']:.0%})" if result["return"] > 0 else ""
            row[name] = formatted(under) + share
        rows.append(row)
    return rows
