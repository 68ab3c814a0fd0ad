"""Three wings that do not know each other: pruning, agents and environments."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = {path.parent.name for path in ROOT.glob("*/__init__.py")}


def imports(path):
    """Absolute names of all that a file imports, also inside functions."""
    package = path.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) + 1 - node.level]) if node.level else ""
            name = ".".join(part for part in (base, node.module) if part)
            yield name
            yield from (f"{name}.{alias.name}" for alias in node.names)


def foreign(wing, allowed):
    """Imports of this project's packages from outside `allowed`, by file."""
    files = sorted((ROOT / wing).rglob("*.py"))
    assert files, wing
    return {
        (str(path.relative_to(ROOT)), name)
        for path in files
        for name in imports(path)
        if name.split(".")[0] in OURS
        and name.split(".")[: len(allowed)] != allowed
        # `from tdmpc_prune.pruning import groups` names its own package, too
        and name.split(".") != allowed[: len(name.split("."))]
    }


@pytest.mark.parametrize(
    ("wing", "allowed"),
    [
        ("tdmpc_prune/pruning", ["tdmpc_prune", "pruning"]),
        ("agents", ["agents"]),
        ("envs", ["envs"]),
    ],
)
def test_a_wing_imports_nothing_of_the_others(wing, allowed):
    assert {"agents", "envs", "tdmpc_prune"} <= OURS
    assert foreign(wing, allowed) == set()


def test_what_joins_them_is_seen():
    """So that the test above can fail."""
    wings = {name.split(".")[0] for _, name in foreign("tdmpc_prune", ["tdmpc_prune"])}
    assert wings == {"agents", "envs"}
