"""What the pages say to type is understood, and what they link to is there."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from tdmpc_prune import cli
from tdmpc_prune.sweep import definition

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docker" / "README.md"]
PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def blocks(page: Path, *kinds: str) -> list[str]:
    """The fenced blocks of a page, of these kinds."""
    return re.findall(rf"^```(?:{'|'.join(kinds)})\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Every `tdmpc-prune ...` to be typed, on one line."""
    typed = "\n".join(blocks(page, "console", "bash")).replace("\\\n", " ")
    return [line for line in typed.splitlines() if line.startswith("tdmpc-prune ")]


def test_there_are_commands():
    assert len(commands(ROOT / "README.md")) >= 15


@PAGE
def test_commands_are_understood(page, tmp_path, monkeypatch):
    monkeypatch.setenv("TDMPC_PRUNE_ENVS", "examples.own_environment")
    monkeypatch.syspath_prepend(ROOT)
    (tmp_path / "mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    for line in commands(page):
        cli.parse(shlex.split(line, comments=True)[1:])


@PAGE
def test_links_lead_somewhere(page):
    headings = {
        heading.lower().replace(" ", "-").translate(str.maketrans("", "", "?:`,."))
        for heading in re.findall(r"^#+ (.*)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    }
    for link, place in re.findall(r"\]\(([^)#:]*)(?:#([^)]*))?\)", page.read_text()):
        assert (page.parent / link).exists(), link
        if place and (page.parent / link).resolve() == ROOT / "README.md":
            assert place in headings


@PAGE
def test_python_is_python(page):
    for code in blocks(page, "python"):
        ast.parse(code)


def test_the_sweep_file_that_is_shown(tmp_path):
    (shown,) = blocks(ROOT / "docs" / "sweeps.md", "yaml")
    (tmp_path / "own.yaml").write_text(shown)
    assert definition.read(tmp_path / "own.yaml").method == "grid"
