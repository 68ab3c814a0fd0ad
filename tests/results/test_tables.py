"""Tables: numbers from what is recorded, and the README's are those."""

import json
import re
import shutil
from types import SimpleNamespace

import pytest

from results import headline, measurements, run, tables
from results.headline import README
from results.markdown import cell
from results.measurements import control, robustness, sensitivity
from results.store import HERE, Store
from results.tables import ANSWERS, each_group, is_small, matrix, write
from tdmpc_prune.analysis.report.groups import sections
from tdmpc_prune.analysis.report.runs import read_runs
from tdmpc_prune.analysis.statistics import Estimate


def run_folder(
    path,
    *,
    seed,
    criterion="none",
    compensation="linear",
    selection=None,
    sparsity=0.9,
    returns=(),
    events=(),
    init_from=None,
    **agent,
):
    """A run of `returns` every 1,000 steps, `events` (step, before, after), ending at `sparsity`."""
    path.mkdir(parents=True)
    config = {
        "task": "cartpole-swingup",
        "preset": "laptop",
        "seed": seed,
        "steps": 1000 * (len(returns) - 1),
        "init_from": init_from,
    }
    prune = ({"selection": selection} if selection else {}) | {
        "criterion": criterion,
        "allocation": "uniform",
        "compensation": compensation,
        "schedule": "cosine",
        "sparsity": sparsity,
    }
    agent = {"hidden_dim": 128} | agent
    (path / "config.json").write_text(json.dumps({"config": config | {"prune": prune, "agent": agent}}))
    rows = [{"env_step": 1000 * i, "eval/return": r, "prune/sparsity": 0.0} for i, r in enumerate(returns)]
    rows += [
        {
            "env_step": s,
            "prune/event": i,
            "prune/sparsity": sparsity,
            "prune/return_before": b,
            "prune/return_after": a,
        }
        for (i, (s, b, a)), sparsity in zip(enumerate(events), (0.5, 0.875), strict=False)
    ]
    rows.sort(key=lambda row: row["env_step"])
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {"env_step": config["steps"], "return": returns[-1], "parameters": agent["hidden_dim"]}
    (path / "summary.json").write_text(json.dumps(summary))
    return path


@pytest.fixture
def section(tmp_path):
    """Dense 500 everywhere and 1,000 in the end; pruned half of it, in a window from step 1,000 to 3,000."""
    paths = [run_folder(tmp_path / f"d{s}", seed=s, returns=(0, 500, 500, 500, 1000)) for s in (1, 2)]
    events = [(1000, 500, 90), (3000, 300, 60)]
    paths += [
        run_folder(
            tmp_path / f"p{s}", seed=s, criterion="taylor", returns=(0, 400, 200, 300, 800 + s), events=events
        )
        for s in (1, 2)
    ]
    paths.append(
        run_folder(tmp_path / "c", seed=1, criterion="taylor", compensation="none", returns=(0, 9, 9, 9, 600))
    )
    paths.append(run_folder(tmp_path / "s", seed=1, returns=(0, 0, 0, 0, 700), hidden_dim=13))
    [found] = sections(read_runs(paths))
    return found


def test_a_cell_says_value_interval_and_seeds():
    assert cell(Estimate(856.4, 840.0, 862.0), seeds=3) == "856 [840, 862] (3)"
    assert cell(Estimate(856.4, 856.4, 856.4), seeds=1) == "856 (1)"
    assert cell(Estimate(856.4, 856.4, 856.4), seeds=1, counted=False) == "856"
    assert cell(Estimate(1.26, 1.0, 2.0), digits=1, seeds=2, counted=False) == "1.3 [1.0, 2.0]"
    assert cell(Estimate(1.26, 1.0, 2.0), digits=1) == "1.3 [1.0, 2.0]"
    assert cell(None) == "-"


def test_rows_of_groups(section):
    rows = {row["cartpole-swingup"]: row for row in each_group(section)}
    pruned = rows["taylor uniform compensated 90%"]
    assert pruned["end"] == "802 [801, 802]"
    assert pruned["end, % of dense"] == "80 [80, 80]"
    # Steps 1,000 to 4,000: from 90 to 200, to 300, and from 60 to 801 or 802; dense 500, 500, and to 1,000.
    assert pruned["window"] == "275 [275, 275]"
    # Left 1, 1/2, 1/8: 197.5 on average until step 3,000 (90 to 200, 200 to 300), and twice what came then, 430.5.
    assert pruned["by size"] == "353 [353, 353]"
    assert pruned["window, % of dense"] == "47 [47, 47]"
    assert pruned["lowest"] == "60 [60, 60]"
    assert pruned["largest fall"] == "410 [410, 410]"  # 500 to 90, and 300 to 60
    assert rows["dense"]["end, % of dense"] == "-"


def test_what_goes_on_is_compared_with_what_goes_on(tmp_path):
    """Its steps begin anew: a dense run of the same number of steps had only begun to learn."""
    whole, events = tmp_path / "whole", [(1000, 500, 400), (2000, 400, 400)]
    run_folder(whole, seed=1, returns=(0, 100, 100, 100, 500))
    after = run_folder(
        tmp_path / "p",
        seed=1,
        criterion="taylor",
        returns=(500, 400, 400, 400, 400),
        events=events,
        init_from=str(whole),
    )
    [found] = sections(read_runs([whole, after]))
    rows = {row["cartpole-swingup"]: row for row in each_group(found)}
    assert rows["taylor uniform 90% (init_from a dense run)"]["window, % of dense"] == "-"
    on = run_folder(tmp_path / "g", seed=1, returns=(500, 800, 800, 800, 800), init_from=str(whole))
    [found] = sections(read_runs([whole, after, on]))
    rows = {row["cartpole-swingup"]: row for row in each_group(found)}
    assert rows["taylor uniform 90% (init_from a dense run)"]["end, % of dense"] == "50"
    assert rows["taylor uniform 90% (init_from a dense run)"]["window, % of dense"] == "50"
    assert rows["dense (going on)"]["end"] == "800"
    assert rows["dense"]["end"] == "500"


def test_milliseconds_of_trained_controllers(monkeypatch):
    def measured(sparsity, macs, p50, p99):
        latency = {"1": {"p50": p50, "p99": p99}}
        deadline = {"control_ms": 50.0, "meets_deadline": p99 < 50}
        return {"sparsity": sparsity, "plan_macs": macs, "latency_ms": latency} | deadline

    runs = {"runs": [measured(0.0, 12.67e9, 142.6, 147.6), measured(0.89999, 1.24e9, 21.66, 22.99)]}
    named = [
        SimpleNamespace(name="control-walker-walk", result=lambda: runs),
        SimpleNamespace(name="control-cup-catch", result=lambda: None),  # not measured yet
        SimpleNamespace(name="sensitivity", result=lambda: pytest.fail("another measurement")),
    ]
    monkeypatch.setattr(measurements, "_measurements", lambda study: named)
    [table] = control("harder")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[2] == ["0%", "12.67e9", "142.6", "147.6", "50", "no"]
    assert rows[3] == ["90%", "1.24e9", "21.7", "23.0", "50", "yes"]


def test_criteria_by_sparsity_with_both_controls(section):
    rows = {row[""]: row for row in matrix(section, lambda r: r.end)}
    assert list(rows) == ["taylor", "taylor, cut only", "dense, this small", "dense"]
    assert rows["taylor, cut only"]["90%"] == "600 (1)"
    assert rows["taylor"]["90%"] == "802 [801, 802] (2)"
    assert rows["dense"]["90%"] == "1000 [1000, 1000] (2)"
    assert rows["dense, this small"]["90%"] == "700 (1)"


def test_ways_to_select_have_rows_of_their_own_and_older_runs_went_by_scores(tmp_path):
    seeds = {None: 1, "scores": 2, "surgeon": 1, "residual": 1}
    paths = [
        run_folder(tmp_path / str(s), seed=n, criterion="taylor", selection=s, returns=(0, 10 * n))
        for s, n in seeds.items()
    ]
    [found] = sections(read_runs(paths))
    assert [g.label for g in found.groups] == [
        f"taylor uniform {x}90%" for x in ("", "residual ", "surgeon ")
    ]
    assert {row[""]: row["90%"] for row in matrix(found, lambda r: r.end)} == {
        "taylor": "15 [10, 20] (2)",
        "taylor, surgeon": "10 (1)",
        "taylor, residual": "10 (1)",
    }


def test_small_is_what_is_smaller_than_others_of_its_preset(tmp_path):
    paths = [run_folder(tmp_path / str(n), seed=1, returns=(0, n), hidden_dim=n) for n in (16, 128)]
    paper = run_folder(tmp_path / "paper", seed=1, returns=(0, 1), hidden_dim=512)
    config = json.loads((paper / "config.json").read_text())
    config["config"]["preset"] = "paper"
    (paper / "config.json").write_text(json.dumps(config))
    [found] = sections(read_runs([*paths, paper]))
    small = {group.settings["agent.hidden_dim"]: is_small(group, found) for group in found.groups}
    assert small == {16: True, 128: False, 512: False}


def test_sensitivity_over_seeds(monkeypatch):
    def result(whole, *returns):
        cut = [("q1", 0.5), ("q1", 0.8), ("latent", 0.5), ("latent", 0.8)]
        parts = [
            {"part": part, "units": 1_500, "share": share, "return": value}
            for (part, share), value in zip(cut, returns, strict=True)
        ]
        return {"task": "walker-walk", "return": whole, "parts": parts}

    found = [result(900, 800, 700, 20, 10), result(800, 700, 650, 30, 20)]
    named = [SimpleNamespace(name=f"sensitivity-{n}", result=lambda n=n: found[n]) for n in (0, 1)]
    others = [
        SimpleNamespace(name="sensitivity-2", result=lambda: None),  # not measured yet
        SimpleNamespace(name="damage", result=lambda: pytest.fail("another measurement")),
    ]
    monkeypatch.setattr(measurements, "_measurements", lambda study: [*named, *others])
    [table] = sensitivity("harder")
    assert table.startswith("walker-walk, one part cut")
    assert "undisturbed return 850:" in table
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert rows[0] == ["part", "units", "without 50%", "without 80%"]
    assert rows[2] == ["q1", "1,500", "750 [700, 800] (2)", "675 [650, 700] (2)"]
    assert rows[3] == ["latent", "1,500", "25 [20, 30] (2)", "15 [10, 20] (2)"]
    monkeypatch.setattr(measurements, "_measurements", lambda study: others)
    assert sensitivity("harder") == []


def test_the_pages_show_what_is_recorded(tmp_path, monkeypatch):
    """`make results ARGS="--jobs 0"` leaves them as they are."""
    monkeypatch.setattr(run, "MEASURED", ANSWERS.parent / "measured")
    copy, readme = tmp_path / "answers", tmp_path / "README.md"
    shutil.copytree(ANSWERS, copy)
    shutil.copy(README, readme)
    write(Store(HERE), copy)
    headline.write(Store(HERE), readme)
    for page in ANSWERS.glob("*.md"):
        assert (copy / page.name).read_text() == page.read_text()
    assert readme.read_text() == README.read_text()


def test_a_table_takes_the_place_of_the_one_before(tmp_path, monkeypatch):
    pages = {name: tmp_path / f"{name}.md" for name in ("agent", "validity")}
    marks = {n: f"a\n<!-- {n} -->\nold \\1\n<!-- /{n} -->\nb\n" for n in pages}
    for name, page in pages.items():
        page.write_text(marks[name])
    monkeypatch.setattr(tables, "STUDIES", {name: tables.STUDIES[name] for name in pages})
    write(Store(tmp_path / "nothing"), tmp_path)
    for name, page in pages.items():
        assert page.read_text() == marks[name].replace("old \\1", "Nothing is recorded yet.")


def test_what_pages_link_to_is_there():
    root = ANSWERS.parents[1]
    for page in (root / "README.md", root / "results" / "README.md", *ANSWERS.glob("*.md")):
        links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        assert all((page.parent / link).exists() for link in links), page
    readme = (root / "results" / "README.md").read_text()
    assert all(f"(answers/{page.name})" in readme for page in ANSWERS.glob("*.md"))


def test_returns_in_other_worlds_over_seeds(tmp_path, monkeypatch):
    def evaluated(sparsity, parameters, home, away):
        under = {"delay=1": {"return": away} if away is not None else None}
        return {"sparsity": sparsity, "parameters": parameters, "return": home, "perturbed": under}

    monkeypatch.setattr(run, "MEASURED", tmp_path)
    for seed, delayed in ((1, 400.0), (2, 450.0), (3, None)):
        runs = [
            evaluated(0.0, 90, 800.0, delayed),
            evaluated(0.7996, 20, 500.0, 100.0),
            evaluated(0.0, 20, 9.0, 9.0),
        ]
        found = {"trainings": [], "result": {"runs": runs}}
        (tmp_path / f"robustness-cartpole-swingup-s{seed}.json").write_text(json.dumps(found))
    header, _, home, late = robustness().splitlines()
    assert [c.strip() for c in header.strip("|").split("|")] == ["", "dense", "80%", "dense, small"]
    assert [c.strip() for c in home.strip("|").split("|")][1] == "800 [800, 800] (3)"
    # One simulation broke down: two seeds are left, and half of 800 and nine sixteenths of it.
    assert [c.strip() for c in late.strip("|").split("|")] == [
        "delay=1",
        "425 [400, 450] (2) 53%",
        "100 [100, 100] (3) 20%",
        "9 [9, 9] (3) 100%",
    ]
