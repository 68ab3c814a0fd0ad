"""`tdmpc-prune report`: the page, its figures, and what it refuses."""

import json
import re
from html.parser import HTMLParser
from itertools import product

import matplotlib.image
import numpy as np
import pytest
from test_report_runs import only_section, write_run

from tdmpc_prune import cli
from tdmpc_prune.analysis.report import figures, maps, rivals
from tdmpc_prune.analysis.report.canvas import COLOURS, INK, paint
from tdmpc_prune.analysis.report.numbers import importance
from tdmpc_prune.analysis.report.results import results
from tdmpc_prune.analysis.report.timing import Timing, Timings
from tdmpc_prune.analysis.report.words import interval
from tdmpc_prune.analysis.statistics import bootstrap
from tdmpc_prune.commands import report

VOID = ("meta", "br", "img", "link", "hr", "input")
DARK, LIGHT = "#1c2026", "#ffffff"
"""What the page draws figures on."""


@pytest.fixture
def run(capfd, monkeypatch):
    """Runs the command; returns its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setitem(cli.COMMANDS, "report", (report.ReportConfig, report.run))

    def command(*arguments, latency="logged"):
        code = cli.main(["report", *map(str, arguments), "--latency", latency])
        return code, *capfd.readouterr()

    return command


class Page(HTMLParser):
    """A page's elements, and the text of its table cells, row by row."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.rows, self.open, self.text = [], [], [], ""
        self.feed(text)
        self.rows = [[" ".join(cell.split()) for cell in row] for row in self.rows]

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data

    def table(self, first):
        """Rows of the table with this first column, by the first cell of each."""
        start = next(i for i, row in enumerate(self.rows) if row[0] == first)
        names, *rows = self.rows[start:]
        found = {}
        for row in rows:
            if len(row) != len(names):
                break
            found[row[0]] = dict(zip(names, row, strict=True))
        return found


def write_sweep(tmp_path):
    """Three seeds of a pruned group, dense runs, an unfinished one."""
    for seed, end in enumerate((700.0, 800.0, 830.0), start=1):
        write_run(tmp_path / "sweep" / f"taylor-{seed}", (100.0, 600.0, end), seed=seed)
        write_run(tmp_path / "sweep" / f"dense-{seed}", (100.0, 800.0, end + 40), seed=seed, criterion="none")
    write_run(
        tmp_path / "sweep" / "late", (90.0, 400.0), sparsity=0.9, steps=9000, finished=False, plan_ms=7.0
    )
    return tmp_path / "sweep"


@pytest.fixture
def sweep(tmp_path):
    return write_sweep(tmp_path)


def page_of(out):
    return Page((out / "index.html").read_text())


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A report on such a sweep, only to be looked at."""
    path = tmp_path_factory.mktemp("written")
    out = path / "deep" / "report"
    report.run(report.ReportConfig(runs=(write_sweep(path),), out=out, latency="logged"))
    return out


def test_the_page(written):
    page = page_of(written)
    assert page.open == []
    groups = page.table("group")
    end = bootstrap([[700.0, 800.0, 830.0]])
    assert groups["taylor uniform 80%"] == {
        "group": "taylor uniform 80%",
        "seeds": "1, 2, 3",
        "return in the end": interval(end),
        # Each seed's dense run ends 40 above it.
        "share of dense": f"{100 * end.value / (end.value + 40):.1f}% [94.6, 95.4]",
        "parameters": "200",
        "sparsity": "80%",
        "multiply-accumulates": "180",
        "ms per step (p99)": "4",
        "lowest return after a removal": "300 [300, 300]",
        # From step 800 to 2,000: 300 to 600, 600, and half of the end to the end.
        "mean return while pruning": interval(bootstrap([[475 + e / 8 for e in (700.0, 800.0, 830.0)]])),
        "steps to recover": "200 (2 of 3)",
    }
    assert groups["dense"]["share of dense"] == "\N{EN DASH}"
    assert groups["taylor uniform 90%"]["seeds"] == "1 (0 of 1 finished)"
    runs = page.table("run")
    assert len(runs) == 7
    assert runs["late"] == {
        "run": "late",
        "group": "taylor uniform 90%",
        "seed": "1",
        "state": "unfinished (1,000 of 9,000 steps)",
        "last return": "400",
        "parameters": "550",
        "ms": "7",
        "command": "tdmpc-prune train",
        "commit": "abc123",
        "machine": "Linux, 2 cores",
    }
    assert runs["dense-1"]["state"] == "finished"


def test_it_needs_nothing_beside_it(written):
    page = page_of(written)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "img"}
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes), f"{tag} has a handler"
        for name in ("src", "href", "xlink:href", "data", "action"):
            if (target := attributes.get(name)) is not None:
                assert re.match(r"#|data:image/png;base64,|[\w.-]+\.png$", target), target[:80]
    text = (written / "index.html").read_text()
    assert not re.search(r"@import|url\((?!#)", text)
    names = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert sorted(names) == sorted(path.name for path in written.glob("*.png"))
    assert set(re.findall(r"https?://[\w.]+", text)) == {"http://www.w3.org"}  # names of namespaces


def test_figures_are_named_and_no_id_is_used_twice(written):
    page = page_of(written)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = {
        value
        for _, attributes in page.elements
        for text in attributes.values()
        for value in re.findall(r"url\(#([^)]*)\)|^#(.+)", text or "")
    }
    assert {a or b for a, b in used} <= set(ids)
    pictures = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert [p["aria-label"] for p in pictures] == [
        "Return over sparsity",
        "Return in the end over target sparsity",
        "Learning curves",
        "What each removal did",
        "Time per control step over sparsity",
        "Return against cost: the Pareto front",
        "Sparsity of each component",
        "Widths of the pruning groups",
    ]
    assert all(p["role"] == "img" and "viewbox" in p and "width" not in p for p in pictures)


def test_what_was_typed_is_text(run, tmp_path):
    evil = "<script>alert(1)<img src=x onerror=alert(2)>"
    write_run(
        tmp_path / "runs" / evil, command=f"tdmpc-prune {evil}", task=f"task {evil} $\\frac{{1}}", preset=evil
    )
    write_run(tmp_path / "runs" / "b", task=f"task {evil} $\\frac{{1}}", preset="$x$ & co")
    code, _, err = run(tmp_path / "runs", "--out", tmp_path / "report")
    assert code == 0, err
    page = page_of(tmp_path / "report")
    assert page.open == []
    assert not {"script", "img"} & {tag for tag, _ in page.elements}
    assert evil in page.table("run")
    assert page.table("run")[evil]["command"] == f"tdmpc-prune {evil}"
    assert f"taylor uniform {evil} 80%" in page.table("group")
    assert "taylor uniform $x$ & co 80%" in page.text


def test_several_tasks_have_a_section_each(run, tmp_path):
    write_run(tmp_path / "runs" / "auto", (0.3, 0.1, 0.04), task="autoencoder")
    write_run(tmp_path / "runs" / "cart", criterion="none")
    write_run(tmp_path / "runs" / "walk", task="walker-walk", criterion="none")
    code, stdout, _ = run(tmp_path / "runs", "--out", tmp_path / "report", "--json")
    assert code == 0
    result = json.loads(stdout)
    assert stdout.count("\n") == 1
    page = page_of(tmp_path / "report")
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"][:3]
    assert links == [f"#{name}" for name in sections] == ["#task-1", "#task-2", "#task-3"]
    assert [group["task"] for group in result["groups"]] == [
        "autoencoder",
        "cartpole-swingup",
        "walker-walk",
    ]
    auto = result["groups"][0]
    assert auto["error"] == {"iqm": 0.04, "low": 0.04, "high": 0.04}
    assert auto["highest_error"]["iqm"] == pytest.approx(0.2)
    assert "return" not in auto
    assert all((tmp_path / "report" / name).is_file() for name in result["figures"])
    assert "Error over sparsity" in page.text


def test_one_run_alone(run, tmp_path):
    write_run(tmp_path / "a", seed=4)
    code, stdout, _ = run(tmp_path / "a", "--out", tmp_path / "report", "--json")
    assert code == 0
    (group,) = json.loads(stdout)["groups"]
    assert (group["seeds"], group["ms"], group["ms_p99"], group["share_of_dense"]) == ([4], 4.0, None, None)
    page = page_of(tmp_path / "report")
    assert page.table("group")["taylor uniform 80%"]["return in the end"] == "800"
    assert "One seed, and so no interval" in page.text


@pytest.mark.parametrize("criterion", ["taylor", "none"])
def test_a_run_that_has_just_begun(run, tmp_path, criterion):
    path = write_run(tmp_path / "a", finished=False, criterion=criterion)
    (path / "metrics.jsonl").write_text("")
    code, _, err = run(path, "--out", tmp_path / "report")
    assert code == 0, err
    assert page_of(tmp_path / "report").table("run")["a"]["state"] == "unfinished (0 of 2,000 steps)"


def test_without_times(run, tmp_path):
    run(write_run(tmp_path / "a", criterion="none"), "--out", tmp_path / "report", latency="none")
    page = page_of(tmp_path / "report")
    assert "Time per control step" not in page.text
    assert page.table("group")["dense"]["ms per step (p99)"] == "\N{EN DASH}"


def test_a_report_is_written_anew(run, tmp_path):
    out, path = tmp_path / "report", write_run(tmp_path / "a", criterion="none")
    assert run(path, "--out", out)[:2] == (0, f"{out / 'index.html'}\n")
    (out / "mine.png").write_bytes(b"not of the report")
    assert (out / "latency.png").exists()
    code, _, err = run(path, "--out", out, latency="none")
    assert code == 0, err
    assert not (out / "latency.png").exists()  # of no figure any more
    assert (out / "mine.png").exists()


# What is refused: one line, exit code 2, and nothing is written


@pytest.mark.parametrize("name", ["missing", "file", "empty", "damaged"])
def test_no_run(run, sweep, tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (write_run(tmp_path / "damaged") / "config.json").write_text("{")
    code, stdout, err = run(sweep, tmp_path / name, "--out", tmp_path / "report")
    assert (code, stdout) == (2, "")
    assert err.count("\n") == 1
    assert name in err
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("content", ["<!doctype html><title>mine</title>", None])
def test_a_folder_that_holds_something_else(run, sweep, tmp_path, content):
    out = tmp_path / "mine"
    out.mkdir()
    name = "index.html" if content else "notes.txt"
    (out / name).write_text(content or "")
    code, stdout, err = run(sweep, "--out", out)
    assert (code, stdout, err.count("\n")) == (2, "", 1)
    assert "no report" in err
    assert [path.name for path in out.iterdir()] == [name]


def test_a_file_in_the_way(run, sweep, tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        code, _, err = run(sweep, "--out", out)
        assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [((), "runs|run"), (("x", "--out", "y", "--threads", "-1"), "threads is -1"), (("x",), "out")],
)
def test_bad_arguments(run, arguments, reason):
    code, _, err = run(*arguments)
    assert (code, err.count("\n")) == (2, 1)
    assert re.search(reason, err)


# Figures


def drawn(draw, **settings):
    """The figure's panels after `draw`."""
    kept = []

    def keep(figure):
        draw(figure, **settings)
        kept.extend(figure.axes)

    picture = paint("name", "title", "caption", keep, 4)
    return kept, picture


def test_the_deadline_is_drawn(sweep):
    section = only_section(sweep)
    timings = Timings({run.path: Timing(5.0, 6.0) for run in section.runs}, "")
    periods = {run.path: 80.0 for run in section.runs}
    (axes,), picture = drawn(figures.latency, section=section, timings=timings, periods=periods)
    level = [line for line in axes.lines if list(line.get_ydata()) == [80.0, 80.0]]
    assert len(level) == 1
    assert "control period: 80 ms" in picture.svg
    assert axes.get_ylim()[1] > 80
    medians = {(x, y) for line in axes.lines for x, y in zip(*line.get_data(), strict=True) if y == 5.0}
    assert {round(x, 3) for x, _ in medians} == {0.0, 0.45, 0.8}


def test_the_front_is_ringed(sweep):
    section = only_section(sweep)
    (axes,), _ = drawn(figures.pareto, section=section, results=results(section, Timings({}, "")))
    front = next(line for line in axes.lines if line.get_label() == "not beaten")
    np.testing.assert_allclose(
        front.get_data(), [[200, 1000], [bootstrap([[700, 800, 830]]).value, 2450 / 3]]
    )


def test_groups_side_by_side(tmp_path):
    """At each sparsity of several groups, the one that keeps most while units go is uppermost."""
    for criterion, dip, end in (("taylor", 300.0, 700.0), ("random", 100.0, 900.0), ("fisher", 500.0, 800.0)):
        write_run(tmp_path / criterion, (100.0, dip, end), criterion=criterion)
    write_run(tmp_path / "more", criterion="taylor", sparsity=0.9)  # alone there
    write_run(tmp_path / "dense", (100.0, 800.0, 950.0), criterion="none")
    section = only_section(tmp_path)
    found = results(section, Timings({}, ""))
    assert [[r.group.family for r in row] for row in rivals.compared(found).values()] == [
        ["fisher uniform", "taylor uniform", "random uniform"]
    ]
    (ends, window), _ = drawn(rivals.side_by_side, section=section, results=found)
    assert [label.get_text() for label in ends.get_yticklabels()] == ["fisher", "taylor", "random"]
    marks = [
        [line.get_xdata()[0] for line in panel.lines if line.get_marker() == "o"] for panel in (ends, window)
    ]
    assert marks[0] == [800, 700, 900]
    by_name = {r.group.family: r.window.value for r in found if r.group.target == 0.8}
    assert marks[1] == [by_name[f"{name} uniform"] for name in ("fisher", "taylor", "random")]
    for panel in (ends, window):
        assert [list(line.get_xdata()) for line in panel.lines if line.get_linestyle() == "--"] == [
            [950, 950]
        ]
    assert window.get_ylabel() == "80% removed"
    assert ends.get_ylim()[0] > ends.get_ylim()[1]  # the first is uppermost


def test_more_manners_than_colours_look_different(tmp_path):
    kinds = ("geometric", "cosine", "cubic", "linear")
    for schedule, kind in product(kinds, ("uniform", "global")):
        name = f"{schedule}-{kind}"
        write_run(tmp_path / name, prune__schedule=schedule, prune__allocation=kind)
    section = only_section(tmp_path)
    (ends, *_), _ = drawn(rivals.side_by_side, section=section, results=results(section, Timings({}, "")))
    assert len({(line.get_color(), line.get_marker()) for line in ends.lines}) == 8


def test_of_errors_the_lowest_is_uppermost(tmp_path):
    for criterion, end in (("taylor", 0.04), ("random", 0.02), ("fisher", 0.08)):
        write_run(tmp_path / criterion, (0.3, 0.1, end), task="autoencoder", criterion=criterion)
    [found] = rivals.compared(results(only_section(tmp_path), Timings({}, ""))).values()
    assert [r.group.family for r in found] == ["random uniform", "taylor uniform", "fisher uniform"]


@pytest.mark.parametrize(
    ("setting", "values", "names"),
    [
        ("prune__schedule", ("cosine", "cubic", "linear"), ["cosine", "cubic", "linear"]),
        ("prune__events", (2, 3, 4), ["(prune.events 2)", "(prune.events 3)", "(prune.events 4)"]),
    ],
)
def test_names_side_by_side_leave_out_what_is_common(tmp_path, setting, values, names):
    for value in values:
        write_run(tmp_path / str(value), **{setting: value})
    section = only_section(tmp_path)
    (ends, *_), _ = drawn(rivals.side_by_side, section=section, results=results(section, Timings({}, "")))
    assert sorted(label.get_text() for label in ends.get_yticklabels()) == names


def test_settings_common_to_all_groups_side_by_side_are_left_out(tmp_path):
    for criterion in ("taylor", "fisher", "random"):
        write_run(tmp_path / criterion, criterion=criterion, init_from=str(tmp_path / "whole"))
    write_run(tmp_path / "whole", criterion="none")
    section = only_section(tmp_path)
    assert section.groups[-1].label == "taylor uniform 80% (init_from a dense run)"
    (ends, *_), _ = drawn(rivals.side_by_side, section=section, results=results(section, Timings({}, "")))
    assert sorted(label.get_text() for label in ends.get_yticklabels()) == ["fisher", "random", "taylor"]


def test_many_kinds_are_compared_side_by_side_only(run, tmp_path):
    for criterion in ("taylor", "fisher", "gradient", "magnitude", "random", "bayesian", "bayesian-saliency"):
        for sparsity in (0.8, 0.9):
            write_run(tmp_path / "runs" / f"{criterion}{sparsity}", criterion=criterion, sparsity=sparsity)
    assert run(tmp_path / "runs", "--out", tmp_path / "out")[0] == 0
    assert (tmp_path / "out" / "side-by-side.png").is_file()
    assert not (tmp_path / "out" / "end-over-target.png").exists()  # it has not as many colours


def test_many_kinds_of_no_common_sparsity_stay_in_one_figure(run, tmp_path):
    criteria = ("taylor", "fisher", "gradient", "magnitude", "random", "bayesian", "bayesian-saliency")
    for number, criterion in enumerate(criteria):
        for sparsity in (0.5 + number / 100, 0.8 + number / 100):
            write_run(tmp_path / "runs" / f"{criterion}{sparsity}", criterion=criterion, sparsity=sparsity)
    assert run(tmp_path / "runs", "--out", tmp_path / "out")[0] == 0
    assert not (tmp_path / "out" / "side-by-side.png").exists()
    assert (tmp_path / "out" / "end-over-target.png").is_file()


def test_the_colours_of_a_heat_map_are_its_values(tmp_path):
    path = write_run(tmp_path / "a")
    with (path / "metrics.jsonl").open("a") as file:
        for step in (10, 20):
            row = {"importance/taylor/x": 3.0, "importance/taylor/y": 1.0, "importance/fisher/x": 1.0}
            file.write(json.dumps({"env_step": step, **row, "importance/fisher/y": 0.0}) + "\n")
    section = only_section(tmp_path)
    found = {name: importance(section.groups[0], name) for name in maps.criteria(section.groups[0])}
    assert list(found) == ["taylor", "fisher"]
    panels, _ = drawn(maps.importances, section=section, maps=found)
    shown = {axes.get_title(): axes.collections[0].get_array() for axes in panels[:2]}
    np.testing.assert_allclose(shown["taylor"], [[1.5, 1.5], [0.5, 0.5]])
    np.testing.assert_allclose(shown["fisher"], [[2, 2], [maps.CLIP, maps.CLIP]])


def test_a_picture_suits_light_and_dark(tmp_path):
    section = only_section(write_run(tmp_path / "a"))
    _, picture = drawn(figures.over_steps, section=section)
    assert INK not in picture.svg.lower()
    assert "currentColor" in picture.svg
    assert picture.svg.startswith(
        '<svg xmlns:xlink="http://www.w3.org/1999/xlink" role="img" aria-label="title"'
    )
    (tmp_path / "a.png").write_bytes(picture.png)
    assert matplotlib.image.imread(tmp_path / "a.png")[0, 0, :3].tolist() == [1, 1, 1]  # on white
    again = paint("name", "title", "caption", lambda figure: figures.over_steps(figure, section), 4)
    assert again.svg == picture.svg


def test_groups_look_different(tmp_path):
    for i, criterion in enumerate(("taylor", "fisher", "gradient", "magnitude", "random", "bayesian")):
        for sparsity in (0.5, 0.8, 0.9)[: 1 + i]:
            write_run(tmp_path / f"{criterion}{sparsity}", criterion=criterion, sparsity=sparsity)
    write_run(tmp_path / "dense", criterion="none")
    section = only_section(tmp_path)
    look = figures.looks(section)
    assert len(look) == len(section.groups) == 16
    assert len(set(look.values())) == 16
    assert look["dense"].color == INK
    assert look["fisher uniform 50%"].color == look["fisher uniform 80%"].color


def _luminance(colour):
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


@pytest.mark.parametrize("colour", COLOURS)
@pytest.mark.parametrize("ground", [LIGHT, DARK])
def test_lines_stand_out_from_light_and_dark(colour, ground):
    low, high = sorted((_luminance(colour), _luminance(ground)))
    assert (high + 0.05) / (low + 0.05) >= 3  # WCAG 1.4.11
