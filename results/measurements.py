"""Tables of what verbs and benchmarks measured; see results/measured/."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import mean
from typing import Any

from results.markdown import NOTHING, Row, cell, markdown
from results.run import Measurement
from results.studies import CRITERIA, STUDIES
from tdmpc_prune.analysis.report.groups import percent
from tdmpc_prune.analysis.report.numbers import estimate


def validity() -> str:
    """Rank correlation of scores and measured loss damage: mean within groups, and of each component at a moment."""
    return "\n\n".join(filter(None, [_over_time(), *map(_by_component, _measurements("validity"))]))


def _by_component(one: Measurement) -> str:
    """The last moment at which nothing was removed yet, component by component."""
    moments = (one.result() or {"moments": []})["moments"]
    whole = [m for m in moments if m["units"] == moments[0]["units"]]
    if not whole or not one.name.startswith("validity-whole"):
        return ""
    found = whole[-1]["damage"]["loss"]
    rows = [
        {
            "": name,
            "all": _with_interval(found[name]["overall"]),
            **{part: _rho(value["rho"]) for part, value in found[name]["components"].items()},
        }
        for name in CRITERIA
    ]
    task = one.name.removeprefix("validity-whole-")
    return f"{task}, step {whole[-1]['env_step']:,}, nothing removed yet:\n\n{markdown(rows)}"


def _with_interval(found: dict[str, float | None]) -> str:
    return f"{_rho(found['rho'])} [{_rho(found['low'])}, {_rho(found['high'])}]"


def _over_time() -> str:
    rows = []
    for one in _measurements("validity"):
        for moment in (one.result() or {"moments": []})["moments"]:
            by_criterion = moment["damage"]["loss"]
            rows.append(
                {
                    "run": one.name.removeprefix("validity-"),
                    "step": f"{moment['env_step']:,}",
                    "units": f"{moment['units']:,}",
                    **{name: _rho(by_criterion[name]["overall"]["rho"]) for name in CRITERIA},
                }
            )
    return markdown(rows)


def stability() -> str:
    """Violations and boundaries, over the seeds there are."""
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    boundaries: dict[tuple[str, str], list[str]] = {}
    for one in _measurements("stability"):
        if result := one.result():
            key = (result["task"], result["controller"])
            boundaries.setdefault(key, []).append(_boundary(result))
            for run in result["runs"]:
                found.setdefault((*key, percent(round(run["sparsity"], 2))), []).append(run)
    rows = [
        {
            "task": task,
            "controller": controller,
            "sparsity": sparsity,
            "seeds": str(len(runs)),
            "violations": _percents([run["violation_rate"] for run in runs]),
            "starts that leave": _percents([run["left"] for run in runs]),
            "boundary": ", ".join(boundaries[task, controller]) if sparsity == "0%" else "",
        }
        for (task, controller, sparsity), runs in found.items()
    ]
    return markdown(rows)


def _boundary(result: dict[str, Any]) -> str:
    """In percent; nothing where the reference leaves the region itself, whatever an earlier version said then."""
    [reference] = (run for run in result["runs"] if run["reference"])
    return NOTHING if reference["left"] else _percents([result["boundary"] or 0.0])


def deadline() -> str:
    """Milliseconds of a plan by what is left, and whether the task gives as many."""
    text = []
    for one in _measurements("deadline"):
        if result := one.result():
            rows = [
                {
                    "removed": row["asked for"],
                    "multiples of": str(row["multiples of"]),
                    "parameters": f"{row['parameters']:,}",
                    "plan, ms": f"{row['plan ms']:.1f}",
                    "p99": f"{row['p99']:.1f}",
                    "in time": "yes" if row["in time"] else "no",
                    "quicker": row["plan quicker"],
                    "arithmetic": row["plan arithmetic"],
                }
                | _exported(row)
                for row in result["rows"]
            ]
            text.append(f"{result['measured on']}:\n\n{markdown(rows)}")
    return "\n\n".join(text) or markdown([])


def _exported(row: Row) -> Row:
    """Of the exported planner the same columns, where it was measured."""
    if "exported plan ms" not in row:
        return {}
    return {
        "exported, ms": f"{row['exported plan ms']:.1f}",
        "exported, p99": f"{row['exported p99']:.1f}",
        "exported, in time": "yes" if row["exported in time"] else "no",
        "exported, quicker": row["exported plan quicker"],
    }


def robustness() -> str:
    """Returns in worlds that nobody was trained in, and the share of the return at home, over the seeds there are."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for one in _measurements("robustness"):
        runs = (one.result() or {"runs": []})["runs"]
        for run in runs:
            controller = percent(round(run["sparsity"], 2)) if run["sparsity"] else "dense"
            if controller == "dense" and run["parameters"] < runs[0]["parameters"]:
                controller = "dense, small"
            by_world = found.setdefault(controller, {"at home": []})
            by_world["at home"].append(run)
            for world, outcome in run["perturbed"].items():
                if outcome is not None:  # the simulation broke down
                    by_world.setdefault(world, []).append(outcome | {"at home": run["return"]})
    worlds = dict.fromkeys(world for by_world in found.values() for world in by_world)
    return markdown(
        [
            {"": world} | {name: _under(by_world.get(world, [])) for name, by_world in found.items()}
            for world in worlds
        ]
    )


def _under(outcomes: Sequence[dict[str, Any]]) -> str:
    """A return with its interval, and the share of that at home."""
    found = estimate([one["return"] for one in outcomes])
    shares = [one["return"] / one["at home"] for one in outcomes if one.get("at home")]
    share = f" {mean(shares):.0%}" if shares else ""
    return cell(found, seeds=len(outcomes)) + share


def damage() -> list[str]:
    """What each group's units are worth to the loss and to the return."""
    text = []
    for one in _measurements("allocation"):
        if one.name.startswith("damage") and (result := one.result()):
            moment = result["moments"][-1]
            found = moment["mean_damage"]
            rows = [
                {
                    "group": name,
                    "loss, of a unit": f"{value:.3g}",
                    "return, of a random half": f"{found['return'][name]:.0f}",
                }
                for name, value in found["loss"].items()
            ]
            title = f"Mean damage at step {moment['env_step']:,}, undisturbed return {moment['return']:.0f}"
            text.append(f"{title}:\n\n{markdown(rows)}")
    return text


def sensitivity(study: str) -> list[str]:
    """What is left of the return without a share of one part's units, over the seeds there are."""
    found = [
        result
        for one in _measurements(study)
        if one.name.startswith("sensitivity") and (result := one.result())
    ]
    if not found:
        return []
    rows: dict[str, Row] = {}
    for name, share in dict.fromkeys((part["part"], part["share"]) for part in found[0]["parts"]):
        same = [
            part
            for result in found
            for part in result["parts"]
            if (part["part"], part["share"]) == (name, share)
        ]
        rows.setdefault(name, {"part": name, "units": f"{same[0]['units']:,}"})[
            f"without {percent(share)}"
        ] = cell(estimate([part["return"] for part in same]), seeds=len(same))
    whole = f"{mean(result['return'] for result in found):.0f}"
    title = f"{found[0]['task']}, one part cut and compensated, all others whole; undisturbed return {whole}"
    return [f"{title}:\n\n{markdown(list(rows.values()))}"]


def control(study: str) -> list[str]:
    """Milliseconds of a control step of trained controllers, on one core, against the control period."""
    return [
        markdown(
            [
                {
                    "sparsity": percent(round(run["sparsity"], 2)),
                    "multiply-accumulates of a plan": f"{run['plan_macs'] / 1e9:.2f}e9",
                    "ms, median": f"{run['latency_ms']['1']['p50']:.1f}",
                    "ms, p99": f"{run['latency_ms']['1']['p99']:.1f}",
                    "control period, ms": f"{run['control_ms']:.0f}",
                    "in time": "yes" if run["meets_deadline"] else "no",
                }
                for run in result["runs"]
            ]
        )
        for one in _measurements(study)
        if one.name.startswith("control") and (result := one.result())
    ]


def _percents(values: Iterable[float]) -> str:
    return ", ".join(f"{100 * value:.0f}%" for value in values)


def _measurements(study: str) -> list[Measurement]:
    return [one for one in STUDIES[study].work() if isinstance(one, Measurement)]


def _rho(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.2f}".replace("0.", ".")


MEASURED_TABLES: dict[str, Callable[[], str]] = {
    "validity": validity,
    "deadline": deadline,
    "stability": stability,
    "robustness": robustness,
}
