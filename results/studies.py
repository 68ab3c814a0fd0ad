"""The seven questions, and some that they led to, each with the trainings and measurements that answer it.

Seeds come first: what is there after a part of the work is a table of fewer seeds, not of fewer rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product

from results.run import Measurement, Work
from results.trials import EARLY, Trial, of_sweep, trial

CARTPOLE, WALKER = "cartpole-swingup", "walker-walk"
TASKS = (
    "cartpole-balance",
    CARTPOLE,
    "cup-catch",
    "pendulum-swingup",
    "reacher-easy",
    "cheetah-run",
    "finger-spin",
    WALKER,
)
CRITERIA = (
    "taylor",
    "magnitude",
    "random",
    "gradient",
    "fisher",
    "fisher-saliency",
    "bayesian",
    "bayesian-saliency",
)
DENSE = ("--prune.criterion", "none")
BRIEFLY = ("--agent.schedule-steps", EARLY)
"""As laptop agents explored on all tasks, when most was made: on the walker, where an action lasts two environment
steps, a quarter as long as now."""
SEEDS = (1, 2, 3, 4, 5)
SMALL = {
    CARTPOLE: {0.8: (14, 56), 0.9: (10, 39), 0.95: (7, 27), 0.98: (4, 16)},
    WALKER: {0.8: (14, 54), 0.9: (9, 37), 0.95: (6, 25), 0.98: (4, 14)},
}
"""Latent and hidden widths of dense agents with as many parameters, to a percent or two (4% at 98%), as are
left at a sparsity; in the proportions of the laptop preset, but four latent units at least."""


SMALL_AUTOENCODERS = (25, 12)
"""Hidden widths of dense autoencoders with as many parameters, to 3%, as are left at 80 and 90%, and a whole code."""


@dataclass(frozen=True)
class Study:
    """A question and what answers it."""

    question: str
    work: Callable[[], Iterator[Work]]
    """In the order of their making."""


def small(task: str, sparsity: float, seed: int, *more: object) -> Trial:
    """A dense agent of the size that pruning leaves, trained from scratch."""
    latent, hidden = SMALL[task][sparsity]
    widths = ("--agent.latent-dim", latent, "--agent.encoder-dim", hidden, "--agent.hidden-dim", hidden)
    return trial(task, "--seed", seed, *DENSE, *widths, *more)


def dense(task: str, seed: int, *more: object) -> Trial:
    """An agent that nothing is removed from."""
    return trial(task, "--seed", seed, *DENSE, *more)


def pruned(task: str, seed: int, sparsity: float, *more: object) -> Trial:
    """An agent that loses so much while it learns."""
    return trial(task, "--seed", seed, "--prune.sparsity", sparsity, *more)


def agent() -> Iterator[Work]:
    """Dense agents on eight tasks; in the paper's sizes, for which a GPU is the better place, on three."""
    for seed, task in product(SEEDS[:3], TASKS):
        yield dense(task, seed, "--steps", 100_000)
    # Exploring for 3,000 of their steps, as laptop agents once did on all tasks: what showed that this is too short;
    # and for as many as the published ones do.
    briefly = {"finger-spin": 1, WALKER: 1} | dict.fromkeys(TASKS[2:6], 2)
    for task, seeds in briefly.items():
        for seed in SEEDS[:seeds]:
            yield dense(task, seed, "--steps", 100_000, *BRIEFLY)
    for task, seeds in {"finger-spin": (2,), "pendulum-swingup": (2, 3)}.items():
        for seed in seeds:
            yield dense(task, seed, "--steps", 100_000, "--agent.schedule-steps", 25_000)
    for task, seeds in {CARTPOLE: (1, 2), WALKER: (1,), "cup-catch": (1,)}.items():
        for seed in seeds:
            yield dense(task, seed, "--preset", "paper", "--steps", 60_000)


ROUNDS = (
    # task, sparsities, compensation, seeds: what tells criteria apart first
    (CARTPOLE, (0.95, 0.98), "linear", SEEDS[:3]),
    (CARTPOLE, (0.95, 0.98), "none", SEEDS[:3]),
    (WALKER, (0.9, 0.95), "linear", SEEDS[:1]),
    (CARTPOLE, (0.8, 0.9), "linear", SEEDS[:3]),
    (WALKER, (0.9, 0.95), "linear", SEEDS[1:3]),
    (CARTPOLE, (0.8, 0.9, 0.95, 0.98), "linear", SEEDS[3:]),
    (CARTPOLE, (0.95, 0.98), "none", SEEDS[3:]),
    (WALKER, (0.8,), "linear", SEEDS[:3]),
)


def criteria() -> Iterator[Work]:
    """sweeps/criteria.yaml and criteria-walker-walk.yaml but for their least telling parts, with both controls."""
    grids = {CARTPOLE: of_sweep("criteria"), WALKER: of_sweep(f"criteria-{WALKER}")}
    for task, sparsities, compensation, seeds in ROUNDS:
        for seed in seeds:
            yield dense(task, seed)
            for one in grids[task]:
                prune = one.config.prune
                asked = prune.sparsity in sparsities and prune.compensation == compensation
                if asked and one.config.seed == seed:
                    yield one
            yield from (small(task, sparsity, seed) for sparsity in sparsities)


def walker() -> Iterator[Work]:
    """All criteria from the same three agents that walk already, in 20,000 steps more."""
    for few in (CRITERIA[:4], CRITERIA[4:]):
        for seed in SEEDS[:3]:
            whole = dense(WALKER, seed, *BRIEFLY)
            yield trial(WALKER, "--seed", seed, *DENSE, *BRIEFLY, after=whole)
            line = (WALKER, "--seed", seed, *BRIEFLY, "--steps", 20_000, "--prune.sparsity", 0.9)
            yield from (trial(*line, "--prune.criterion", criterion, after=whole) for criterion in few)


WHOLE = ("--prune.schedule", "one-shot", "--prune.start", 0.98, "--prune.end", 1)
"""Scored from the beginning, and pruned when nothing is learned any more."""


def watched(task: str, *setting: object) -> Trial:
    """A training that keeps its checkpoints at four moments, and its scores, if it has any."""
    return trial(task, "--seed", 1, *setting, "--keep-every", 10_000, scores=setting != DENSE)


def validity() -> Iterator[Work]:
    """Measured damage against scores: while nothing is removed, and in between removals, compensated and cut only."""
    gradual = ("--prune.sparsity", 0.8)
    courses = {"whole": WHOLE, "pruned-80": gradual, "cut-80": (*gradual, "--prune.compensation", "none")}
    for task, more in ((CARTPOLE, ()), (WALKER, BRIEFLY)):
        for name, setting in courses.items():
            one = watched(task, *setting, *more)
            yield one
            verb = ("validate", "--moments", "4", "--subsets", "0")
            yield Measurement(f"validity-{name}-{task}", verb, (one,))


def removals() -> Iterator[Work]:
    """The same 40,000 steps, with removals bit by bit, all at once early or late, or after training; also cut only.

    Bit by bit on two schedules, on the default one also at other sparsities, with as small a ridge as fits best, and
    with updates right after removals.
    """
    courses = (
        (),
        ("--prune.schedule", "cosine"),
        ("--prune.schedule", "one-shot"),
        ("--prune.schedule", "one-shot", "--prune.start", 0.8, "--prune.end", 1),
    )
    for seed in SEEDS[:3]:
        yield dense(CARTPOLE, seed)
        half = dense(CARTPOLE, seed, "--steps", 20_000)
        for kind in ("linear", "none"):
            compensated = ("--prune.compensation", kind)
            for course in courses:
                yield pruned(CARTPOLE, seed, 0.9, *course, *compensated)
            line = (CARTPOLE, "--seed", seed, "--steps", 20_000, "--prune.sparsity", 0.9)
            yield trial(*line, *compensated, after=half)
        for sparsity in (0.8, 0.95, 0.98):
            yield pruned(CARTPOLE, seed, sparsity)
        for sparsity, more in product((0.9, 0.95, 0.98), (("ridge", 0.001), ("recovery", 250))):
            yield pruned(CARTPOLE, seed, sparsity, f"--prune.{more[0]}", more[1])
    for seed in SEEDS[:3]:
        yield dense(WALKER, seed)
        for more in ((), ("--prune.schedule", "cosine"), ("--prune.compensation", "none")):
            yield pruned(WALKER, seed, 0.9, *more)


def selection() -> Iterator[Work]:
    """Within a group: units by their scores alone, or by what the others cannot say in their place."""
    grid = of_sweep("selection")
    for seed in SEEDS[:3]:
        yield dense(CARTPOLE, seed)
        yield from (one for one in grid if one.config.seed == seed)
    yield dense(WALKER, 1, *BRIEFLY)
    surgeon = ("--prune.selection", "surgeon")
    for kind in (surgeon, ()):
        yield pruned(WALKER, 1, 0.9, *kind, *BRIEFLY)
    for seed, criterion in product(SEEDS[:3], ("gradient", "magnitude", "random")):
        yield pruned(CARTPOLE, seed, 0.98, *surgeon, "--prune.criterion", criterion)


SENSITIVITY = ("sensitivity", "--episodes", "10")
SPARED = ("--prune.limits.coupling", 0.5, "--prune.limits.component", "dynamics", 0.5, "encoder", 0.5)
"""What the walker's planner cannot do without gives half as much as the rest."""
SPARED_MORE = ("--prune.limits.coupling", 0.25, "--prune.limits.component", "dynamics", 0.25, "encoder", 0.5)


def harder() -> Iterator[Work]:
    """walker-walk to 90%: while it learns to walk, or after; what keeps its planner going; and a larger agent."""
    gentle, recovering = ("--prune.ridge", 0.001), ("--prune.recovery", 500)
    recipe, paper = (*SPARED, *gentle, *recovering), ("--preset", "paper", "--steps")
    for seed in SEEDS[:3]:
        yield dense(WALKER, seed)
        for more in ((), SPARED, recipe, (*recipe, "--steps", 100_000)):
            yield pruned(WALKER, seed, 0.9, *more)
    for seed in SEEDS[:3]:
        whole = dense(WALKER, seed, *BRIEFLY)
        yield whole
        yield small(WALKER, 0.9, seed, *BRIEFLY)
        half = (*gentle, "--prune.limits.coupling", 0.5)
        whole_latent = (*gentle, "--prune.limits.coupling", 0.0)
        for more in ((), gentle, half, whole_latent, recovering, SPARED, recipe):
            yield pruned(WALKER, seed, 0.9, *more, *BRIEFLY)
        yield trial(WALKER, "--seed", seed, *DENSE, *BRIEFLY, after=whole)
        calibrated = ("--prune.allocation", "calibrated")
        by_itself = (*calibrated, *gentle, *recovering)
        for more in ((), whole_latent, recovering, SPARED, recipe, calibrated, by_itself):
            yield trial(WALKER, "--seed", seed, "--prune.sparsity", 0.9, *more, *BRIEFLY, after=whole)
        yield trial(WALKER, "--seed", seed, "--prune.sparsity", 0.8, *SPARED_MORE, *BRIEFLY, after=whole)
        yield Measurement(f"sensitivity-{WALKER}-s{seed}", SENSITIVITY, (whole,))
    whole = dense(WALKER, 1, *paper, 60_000)
    yield whole
    yield pruned(WALKER, 1, 0.9, *paper, 60_000)
    yield trial(WALKER, "--seed", 1, *DENSE, *paper, 40_000, after=whole)
    after = [
        trial(WALKER, "--seed", 1, "--prune.sparsity", sparsity, *more, *paper, 40_000, after=whole)
        for sparsity, more in ((0.9, ()), (0.9, recipe), (0.95, recipe))
    ]
    yield from after
    verb = ("evaluate", "--controller", "planner", "--episodes", "2")
    yield Measurement(f"control-{WALKER}-paper", verb, (whole, *after[:2]))


def allocation() -> Iterator[Work]:
    """Who gives up how much: the three allocations, also cut only, and the latent protected, half, or alike."""
    coupling = of_sweep("coupling")
    for seed in SEEDS[:3]:
        yield dense(CARTPOLE, seed)
        for more, kind in product(
            ((), ("--prune.compensation", "none")), ("uniform", "global", "calibrated")
        ):
            yield pruned(CARTPOLE, seed, 0.9, "--prune.allocation", kind, *more)
        yield from (one for one in coupling if one.config.seed == seed)
        yield Measurement(f"sensitivity-{CARTPOLE}-s{seed}", SENSITIVITY, (dense(CARTPOLE, seed),))
    one = watched(CARTPOLE, *DENSE)
    yield Measurement("damage-cartpole-swingup", ("validate", "--moments", "1", "--subsets", "8"), (one,))


def stability() -> Iterator[Work]:
    """Controllers of several sparsities at their equilibrium."""
    lengths = {"cartpole-balance": 20_000, "InvertedPendulum-v5": 10_000}
    for seed, (task, steps) in product(SEEDS[:3], lengths.items()):
        ladder = (
            dense(task, seed, "--steps", steps),
            *(pruned(task, seed, sparsity, "--steps", steps) for sparsity in (0.5, 0.8, 0.9, 0.95)),
        )
        yield from ladder
        for controller in ("planner", "policy"):
            verb = ("stability", "--controller", controller)
            yield Measurement(f"stability-{controller}-{task}-s{seed}", verb, ladder)


def robustness() -> Iterator[Work]:
    """Controllers of several sparsities, and one as small from the beginning, in worlds other than in training."""
    for seed in SEEDS[:3]:
        ladder = (
            dense(CARTPOLE, seed),
            *(pruned(CARTPOLE, seed, sparsity) for sparsity in (0.8, 0.9, 0.98)),
            small(CARTPOLE, 0.98, seed),
        )
        yield from ladder
        verb = ("evaluate", "--controller", "planner", "--plans", "0", "--perturb", "standard")
        yield Measurement(f"robustness-{CARTPOLE}-s{seed}", verb, ladder)


def deadline() -> Iterator[Work]:
    """Milliseconds of a control step, here and exported, at the paper's sizes: with nothing else at work."""
    for task in (CARTPOLE, WALKER):
        yield Measurement(f"deadline-{task}", ("--task", task), module="benchmarks.pruned")
        exported = ("--task", task, "--exported", "--round-to", "8")
        yield Measurement(f"deadline-exported-{task}", exported, module="benchmarks.pruned")


def autoencoder() -> Iterator[Work]:
    """sweeps/autoencoder.yaml, seed by seed, with dense ones, whole and small; other selections and allocations."""
    grid, alike = of_sweep("autoencoder"), ("--prune.allocation", "uniform")
    for seed in SEEDS:
        yield dense("autoencoder", seed)
        yield from (dense("autoencoder", seed, "--agent.hidden-dim", width) for width in SMALL_AUTOENCODERS)
        for one in grid:
            if one.config.seed == seed:
                yield replace(one, scores=seed == 1)
                prune = one.config.prune
                if prune.compensation != "none" and not prune.criterion.startswith("bayesian"):
                    yield trial(*one.words, "--prune.selection", "surgeon")
        for sparsity in (0.8, 0.9):
            line = ("autoencoder", seed, sparsity)
            yield pruned(*line, *alike, "--prune.selection", "residual")
            yield pruned(*line, *alike, "--prune.limits.coupling", 0)
            yield pruned(*line, "--prune.allocation", "global")
            yield from (pruned(*line, "--prune.criterion", criterion) for criterion in CRITERIA)


STUDIES = {
    "agent": Study("Is the agent right?", agent),
    "criteria": Study("Which criterion?", criteria),
    "walker": Study("Which criterion for an agent that has learned?", walker),
    "validity": Study("Are the scores right?", validity),
    "removals": Study("What do intermediate removals do?", removals),
    "selection": Study("Which of several that say the same?", selection),
    "harder": Study("And on a harder task?", harder),
    "allocation": Study("Which group can spare what?", allocation),
    "deadline": Study("Does it meet its deadline?", deadline),
    "stability": Study("Is it stable?", stability),
    "robustness": Study("Is it as robust?", robustness),
    "autoencoder": Study("Does it work on an autoencoder?", autoencoder),
}
"""By the name that `make results` takes."""
