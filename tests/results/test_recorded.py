"""What is recorded agrees with itself."""

from collections import defaultdict
from pathlib import Path

import pytest

from results.store import HERE, Store
from results.trials import OWN
from tdmpc_prune.run_folder import flatten

TASKS = sorted(path.stem for path in HERE.glob("*.json"))


def learned_alike(entry):
    """What decides what a run does until something is removed."""
    own = {k: v for k, v in flatten(entry["config"]).items() if k.split(".")[0] not in (*OWN, "prune")}
    own["init_from"] = Path(own["init_from"]).name if own.get("init_from") else None
    whole = {k: v for k, v in own.items() if v is not None}
    return (entry["torch"], entry["machine"], *sorted((k, str(v)) for k, v in whole.items()))


@pytest.mark.parametrize("task", TASKS)
def test_runs_that_learn_alike_are_the_same_bit_by_bit_until_something_is_removed(task):
    store = Store()
    rows = store.rows(task)
    seen = defaultdict(dict)
    for name, entry in store.entries.items():
        if entry["config"]["task"] != task or store.overtaken(name):
            continue
        first = min((row["env_step"] for row in rows[name] if "prune/event" in row), default=float("inf"))
        for row in rows[name]:
            if "eval/return" in row and row["env_step"] < first:
                found = seen[learned_alike(entry)].setdefault(row["env_step"], (row["eval/return"], name))
                assert row["eval/return"] == found[0], (name, found[1], row["env_step"])
