"""The table of the project's own README: what is left on cartpole-swingup, over the seeds there are."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path

from results.markdown import Row, markdown, put
from results.store import Store
from results.studies import CARTPOLE, SEEDS, dense, pruned, small
from results.tables import came_to, footnotes, largest_fall, window_share
from results.trials import Trial
from tdmpc_prune.analysis.report.groups import sections
from tdmpc_prune.analysis.report.runs import read_runs
from tdmpc_prune.analysis.statistics import Estimate

README = Path(__file__).parents[1] / "README.md"
SURGEON = ("--prune.selection", "surgeon")
CUT_ONLY = ("--prune.compensation", "none")
LATE = ("--prune.schedule", "one-shot", "--prune.start", 0.8, "--prune.end", 1)
ROWS: dict[str, Callable[[int], Trial]] = {
    "dense": lambda seed: dense(CARTPOLE, seed),
    "pruned to 80%": lambda seed: pruned(CARTPOLE, seed, 0.8),
    "90%": lambda seed: pruned(CARTPOLE, seed, 0.9),
    "95%": lambda seed: pruned(CARTPOLE, seed, 0.95),
    "98%": lambda seed: pruned(CARTPOLE, seed, 0.98),
    "95%, `--prune.selection surgeon`": lambda seed: pruned(CARTPOLE, seed, 0.95, *SURGEON),
    "98%, `--prune.selection surgeon`": lambda seed: pruned(CARTPOLE, seed, 0.98, *SURGEON),
    "90%, cut only": lambda seed: pruned(CARTPOLE, seed, 0.9, *CUT_ONLY),
    "90%, cut only, at once at step 32,000": lambda seed: pruned(CARTPOLE, seed, 0.9, *LATE, *CUT_ONLY),
    "dense from the beginning, 2% of the size": lambda seed: small(CARTPOLE, 0.98, seed),
}


def write(store: Store, readme: Path = README) -> None:
    """Puts the table between its marks, and below it what is of earlier code."""
    made = {said: [make(seed) for seed in SEEDS] for said, make in ROWS.items()}
    shown = [markdown(rows(made, store)), *footnotes(chain(*made.values()), store)]
    put(readme, "headline", "\n\n".join(shown))


def rows(made: Mapping[str, Sequence[Trial]], store: Store) -> list[Row]:
    """A row for what is recorded of each of `ROWS`."""
    found = {said: [t.name for t in trials if store.has(t.name)] for said, trials in made.items()}
    return [_row(said, names, found["dense"], store) for said, names in found.items() if names]


def _row(said: str, names: list[str], whole: list[str], store: Store) -> Row:
    """A group in numbers, beside the dense runs that it is compared with."""
    with tempfile.TemporaryDirectory() as folder:
        runs = store.unpack(dict.fromkeys([*names, *whole]), Path(folder))
        [section] = sections(read_runs(runs))
        [result] = (r for r in came_to(section) if r.group.runs[0].path in runs[: len(names)])
    share, fall = window_share(result, section), largest_fall(result, section)
    return {
        "": said,
        "seeds": str(len(names)),
        "return in the end": _whole(result.end),
        "while units are removed, of dense": f"{_whole(share)}%" if share else "",
        "largest fall at a removal": _whole(fall),
        "parameters": f"{result.parameters:,.0f}",
    }


def _whole(found: Estimate | None) -> str:
    return f"{found.value:.0f}" if found else ""
