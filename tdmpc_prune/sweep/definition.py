"""A sweep file, in W&B's format, read and checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from tdmpc_prune.errors import UserError
from tdmpc_prune.sweep.distributions import Distribution, distribution, nearest

Method = Literal["grid", "random", "bayes"]
Tree = Mapping[str, Any]

PARAMETER = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
KEYS = {
    "name",
    "description",
    "program",
    "command",
    "method",
    "metric",
    "parameters",
    "early_terminate",
    "run_cap",
    "project",
    "entity",
    "apiVersion",
    "kind",
}
"""What a file may say; what W&B knows beside these is refused by name."""
NOT_HONOURED = {
    "controller": "trials are chosen by the engine",
    "job": "it is for W&B Launch",
    "image_uri": "it is for W&B Launch",
    "scheduler": "use method and early_terminate",
    "metrics": "give one metric",
}
METRICS = ("eval/return", "eval/error", "eval/psnr", "eval/return_std", "prune/sparsity", "prune/params")
"""Metrics that a sweep is likely to mean: for advice."""
WINGS = ("eval/", "prune/", "train/", "time/", "importance/", "importance_normalised/")
"""How the names of a run's metrics begin."""


@dataclass(frozen=True)
class Metric:
    """What a sweep looks at."""

    name: str
    maximise: bool = False

    @property
    def sign(self) -> int:
        """1 if more is better, else -1."""
        return 1 if self.maximise else -1


@dataclass(frozen=True)
class Hyperband:
    """When trials that lag behind are stopped, counted in values of the metric."""

    first: int
    """Values before the first decision."""
    eta: float
    """One of eta trials goes on at every decision, and the next one comes after eta times as many values."""


@dataclass(frozen=True)
class Definition:
    """A sweep as its file defines it."""

    path: Path
    raw: Tree
    """The file's content."""
    method: Method
    parameters: Mapping[str, Distribution]
    """By name in W&B's order; those inside another one have dotted names."""
    nested: Mapping[str, tuple[str, ...]]
    """Where each parameter stands in the file's tree."""
    metric: Metric | None
    hyperband: Hyperband | None

    @property
    def name(self) -> str:
        """The sweep's name: its own, or its file's."""
        return str(self.raw.get("name", self.path.stem))

    @property
    def run_cap(self) -> int | None:
        """Most trials, if the file says so."""
        return self.raw.get("run_cap")

    @property
    def varied(self) -> list[str]:
        """Parameters that differ between trials."""
        return [name for name, parameter in self.parameters.items() if not parameter.constant]

    def arguments(self, values: Tree) -> dict[str, Any]:
        """Values by dotted name as the tree that W&B's agents get: nested parameters inside their parents."""
        tree: dict[str, Any] = {}
        for name, value in values.items():
            *parents, last = self.nested[name]
            place = tree
            for parent in parents:
                place = place.setdefault(parent, {})
            place[last] = value
        return tree


def read(path: Path) -> Definition:
    """Reads and checks a sweep file.

    Raises:
        UserError: it cannot be read, is none of W&B's, or asks for what no engine of ours honours.
    """
    import yaml

    try:
        raw = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise UserError(f"{path} cannot be read ({reason}): give a sweep file (YAML)") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path} is no YAML ({' '.join(str(error).split())[:200]})") from error
    try:
        return _definition(path, raw)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def _definition(path: Path, raw: Any) -> Definition:
    _check_keys("a sweep file", raw, KEYS, NOT_HONOURED)
    method = raw.get("method")
    if method not in get_args(Method):
        raise ValueError(f"method is {method!r}; choose {', '.join(get_args(Method))}")
    for key in ("name", "description", "program", "project", "entity"):
        if key in raw and (not isinstance(raw[key], str) or not raw[key]):
            raise ValueError(f"{key} is {raw[key]!r}; choose a word")
    command = raw.get("command", [])
    if not isinstance(command, list) or not all(isinstance(w, str | int | float) for w in command):
        raise ValueError(f"command is {command!r}; choose a list of words")
    if "run_cap" in raw:
        _count("run_cap", raw["run_cap"])
    parameters: dict[str, tuple[tuple[str, ...], Distribution]] = {}
    for name, place, made in _parameters(raw.get("parameters")):
        if name in parameters:
            raise ValueError(f"parameters has {name} twice, nested and dotted; choose one of them")
        parameters[name] = (place, made)
    if method == "grid":
        for name, (_, parameter) in parameters.items():
            if parameter.choices is None:
                raise ValueError(f"parameters.{name}: a grid needs values to try one by one; choose values")
    metric = _metric(raw["metric"]) if "metric" in raw else None
    if metric is None and (method == "bayes" or "early_terminate" in raw):
        needs = "method bayes" if method == "bayes" else "early_terminate"
        raise ValueError(f"{needs} needs a metric, for example eval/return with goal maximize")
    if metric is not None and "early_terminate" in raw and not metric.name.startswith("eval/"):
        raise ValueError(
            f"early_terminate counts evaluations, and {metric.name} has values in between; "
            "choose a metric.name like eval/return"
        )
    return Definition(
        path=path,
        raw=raw,
        method=method,
        parameters={name: parameter for name, (_, parameter) in parameters.items()},
        nested={name: place for name, (place, _) in parameters.items()},
        metric=metric,
        hyperband=_hyperband(raw["early_terminate"]) if "early_terminate" in raw else None,
    )


def _parameters(
    tree: Any, above: tuple[str, ...] = ()
) -> Iterator[tuple[str, tuple[str, ...], Distribution]]:
    """Dotted name, place and distribution of all parameters, in W&B's order."""
    place = ".".join(["parameters", *above])
    if not isinstance(tree, Mapping) or not tree:
        raise ValueError(f"{place} is {tree!r}; choose at least one parameter")
    for name in tree:
        if not isinstance(name, str) or not PARAMETER.fullmatch(name):
            raise ValueError(f"{place}: {name!r} is no parameter's name; choose letters, digits and _ . -")
    for name, spec in sorted(tree.items()):
        if not isinstance(spec, Mapping):
            raise ValueError(f"{place}.{name} is {spec!r}; choose value: or values: below it")
        if "parameters" in spec:
            _check_keys(f"{place}.{name}", spec, {"parameters"})
            yield from _parameters(spec["parameters"], (*above, name))
            continue
        try:
            yield ".".join([*above, name]), (*above, name), distribution(spec)
        except ValueError as error:
            raise ValueError(f"{place}.{name}: {error}") from error


def _metric(tree: Any) -> Metric:
    refused = {
        "target": "sweeps here run all their trials",
        "impute": "failed trials are left out of the search",
        "impute_while_running": "running trials are left out of the search",
    }
    _check_keys("metric", tree, {"name", "goal"}, refused)
    name, goal = tree.get("name"), tree.get("goal", "minimize")
    if not isinstance(name, str) or not name.startswith(WINGS):
        raise ValueError(f"metric.name is {name!r}, which no run measures{nearest(str(name), METRICS)}")
    if goal not in ("maximize", "minimize"):
        raise ValueError(f"metric.goal is {goal!r}; choose maximize, minimize")
    return Metric(name, maximise=goal == "maximize")


def _hyperband(tree: Any) -> Hyperband:
    _check_keys("early_terminate", tree, {"type", "min_iter", "max_iter", "s", "eta", "strict"})
    if tree.get("type") != "hyperband":
        raise ValueError(f"early_terminate.type is {tree.get('type')!r}; choose hyperband")
    if tree.get("strict", True) is not True:
        raise ValueError("early_terminate.strict is false, which is not honoured; leave it out")
    eta = tree.get("eta", 3)
    if isinstance(eta, bool) or not isinstance(eta, int | float) or not 1 < eta < float("inf"):
        raise ValueError(f"early_terminate.eta is {eta!r}; choose more than 1")
    if "max_iter" in tree:
        if "min_iter" in tree:
            raise ValueError("early_terminate has min_iter and max_iter; choose one of them")
        last, s = (
            _count("early_terminate.max_iter", tree["max_iter"]),
            _count("early_terminate.s", tree.get("s")),
        )
        return Hyperband(max(1, int(last / eta**s)), eta)
    return Hyperband(_count("early_terminate.min_iter", tree.get("min_iter")), eta)


def _count(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} is {value!r}; choose a whole number, at least 1")
    return value


def _check_keys(what: str, tree: Any, known: set[str], refused: Mapping[str, str] | None = None) -> None:
    """Refuses what is no mapping, and keys that are unknown or not honoured."""
    if not isinstance(tree, Mapping):
        raise ValueError(f"{what} is {tree!r}; choose keys and values")
    for key in tree:
        if refused and key in refused:
            raise ValueError(f"{key} of {what} is not honoured here ({refused[key]}): leave it out")
        if key not in known:
            raise ValueError(f"{key!r} is unknown in {what}{nearest(str(key), sorted(known))}")
