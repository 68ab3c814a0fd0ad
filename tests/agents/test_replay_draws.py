"""What replay draws: by priority, at which cost, with which weights; and how priorities change."""

from functools import partial

import numpy as np
import pytest
import torch
from replays import FLOOR, buffer, starts_of, tagged
from torch.utils._python_dispatch import TorchDispatchMode

from agents.sums import SumTree


def ladder(replay, length=23):
    """One episode whose sequence at step t has priority (t + 1)^2 / 10; returns their rows in the buffer."""
    replay.add(tagged(1, length))
    count = length - replay.horizon
    batch = replay.sample(3_000)
    rows = {step: int(i) for (_, step), i in zip(starts_of(batch), batch.index, strict=True)}
    assert sorted(rows) == list(range(count))
    index = torch.tensor([rows[step] for step in range(count)])
    replay.update_priorities(index, torch.tensor([(step + 1) ** 2 / 10 - FLOOR for step in range(count)]))
    return index


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_sampling_frequencies(alpha):
    replay = buffer(alpha=alpha, seed=3)
    ladder(replay)
    draws = 60_000
    counts = np.zeros(20)
    for _, step in starts_of(replay.sample(draws)):
        counts[step] += 1
    chances = np.array([((step + 1) ** 2 / 10) ** alpha for step in range(20)])
    expected = draws * chances / chances.sum()
    # 19 degrees of freedom: above 50 with probability 0.0001; the seed is fixed.
    assert ((counts - expected) ** 2 / expected).sum() < 50


@pytest.mark.parametrize("number", [0.0, 1 - 2**-53])
def test_both_ends_of_the_random_numbers(monkeypatch, number):
    """The rows before the first start and after the last one have no share of the draws, not even a point."""
    replay = buffer()
    for episode in (tagged(1, 2), tagged(2, 5), tagged(3, 2)):
        replay.add(episode)
    monkeypatch.setattr(torch, "rand", lambda *size, **kw: torch.full(size, number, dtype=torch.float64))
    assert starts_of(replay.sample(2)) == [(2, 0 if number == 0 else 1)] * 2


@pytest.fixture(
    params=[None, {"leaf": 2, "fan_out": 2, "root": 2}, {"leaf": 4, "fan_out": 3, "root": 5}], ids=str
)
def levels(request, monkeypatch):
    """Sums as they are, and with so few children a node that a small buffer has many levels."""
    if request.param:
        monkeypatch.setattr("agents.replay.SumTree", partial(SumTree, **request.param))


def drawn_plainly(replay, batch_size):
    """Rows that the next `sample` is to draw, and which of them no rounding can change: over all priorities."""
    generator = torch.Generator()
    generator.set_state(replay.generator.get_state())
    uniform = torch.rand(batch_size, generator=generator, dtype=torch.float64).numpy()
    priority = replay.state_dict()["priority"].double().numpy()
    ends = np.where(priority > 0, priority**replay.alpha, 0).cumsum()
    target = uniform * ends[-1]
    index = np.searchsorted(ends, target, side="right")
    return index, np.abs(ends[:, None] - target).min(0) > 1e-12 * ends[-1]


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_draws_are_those_of_a_plain_cumulative_sum(levels, alpha):
    """Over several rounds of the ring, with new priorities, some rows' twice at once, and after a restart."""
    replay = buffer(capacity=90, alpha=alpha)
    generator = torch.Generator().manual_seed(5)
    for number in range(60):
        length = int(torch.randint(1, 25, (1,), generator=generator))
        replay.add(tagged(number, length, number % 3 == 0))
        if number % 17 == 16:
            state, again = replay.state_dict(), buffer(capacity=90, alpha=alpha, seed=number)
            again.add(tagged(0, 80))  # more than what replaces it
            again.load_state_dict(state)
            replay = again
        if not replay.ready:
            continue
        expected, clear = drawn_plainly(replay, 64)
        assert clear.sum() > 60
        batch = replay.sample(64)
        np.testing.assert_array_equal(batch.index[clear], expected[clear])
        assert (replay.storage["priority"][batch.index] > 0).all()
        index = batch.index.repeat(2)
        replay.update_priorities(index, 10 ** (6 * torch.rand(128, generator=generator) - 4))


def test_frequencies_after_the_ring_went_round(levels):
    replay = buffer(capacity=100, horizon=5, alpha=0.6, seed=4)
    for number in range(9):
        replay.add(tagged(number, 30))
    batch = replay.sample(500)
    replay.update_priorities(batch.index, (batch.index % 7 + 1.0).repeat(1))
    priority = replay.state_dict()["priority"].double()
    expected = 60_000 * priority**0.6 / (priority**0.6).sum()
    counts = torch.bincount(replay.sample(60_000).index, minlength=len(priority))
    used = priority > 0
    assert used.sum() == 75
    assert (counts[~used] == 0).all()
    # 74 degrees of freedom: above 128 with probability 0.0001; the seed is fixed.
    assert ((counts - expected)[used] ** 2 / expected[used]).sum() < 128


def test_nothing_to_draw():
    replay = buffer(horizon=3)
    replay.add(tagged(1, 3))
    with pytest.raises(ValueError, match="4 rows"):
        replay.sample(1)


@pytest.mark.parametrize("bad", [float("nan"), -1.0, -float("inf")])
def test_a_priority_that_is_none_becomes_the_floor(bad):
    replay = buffer(alpha=1.0, beta=1.0)
    replay.add(tagged(1, 9))
    replay.update_priorities(torch.tensor([0, 1]), torch.tensor([bad, 1.0]))
    assert replay.state_dict()["priority"][:3].tolist() == pytest.approx([FLOOR, 1, 1])
    assert set(starts_of(replay.sample(300))) == {(1, t) for t in range(1, 6)}


class Operations(TorchDispatchMode):
    """What PyTorch is asked to compute: names, and shapes of what goes in."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), named=None):
        shapes = [tuple(x.shape) for x in arguments if isinstance(x, torch.Tensor)]
        self.seen.append((str(function), shapes))
        return function(*arguments, **(named or {}))


def operations(replay):
    with Operations() as operations:
        batch = replay.sample(8)
        replay.update_priorities(batch.index, torch.ones(8))
    return operations.seen


def test_cost_does_not_depend_on_the_rows_in_use(levels):
    """The same operations on the same shapes, none of which waits for a device to know a number or a shape."""
    replay = buffer(capacity=4_000)
    replay.add(tagged(1, 9))
    few = operations(replay)
    for number in range(2, 400):
        replay.add(tagged(number, 9 + number % 3))
    assert len(replay) > 3_900
    assert operations(replay) == few
    waiting = (
        "_local_scalar_dense",
        "nonzero",
        "item",
        "masked_select",
        "unique",
        "is_nonzero",
        "equal.default",
    )
    assert not [name for name, _ in few if any(word in name for word in waiting)]


def test_no_memory_moves():
    replay = buffer(capacity=40)

    def places():
        tree = replay._tree
        tensors = [replay.storage[name] for name in ("obs", "action", "reward", "terminated", "priority")]
        return [x.data_ptr() for x in (*tensors, tree._leaves, *tree._sums, *tree._running)]

    before = places()
    for number in range(9):
        replay.add(tagged(number, 9))
        batch = replay.sample(8)
        replay.update_priorities(batch.index, torch.ones(8))
    replay.load_state_dict(replay.state_dict())
    assert places() == before


def test_memory_per_step():
    """At cartpole's sizes: 5 + 1 + 1 + 1 numbers of a step in float32; all else takes less than 10% of that."""
    replay = buffer(capacity=100_000, obs_dim=5, action_dim=1)
    assert replay.nbytes / replay.capacity < 1.1 * 4 * (5 + 1 + 1 + 1)
    columns = ("obs", "action", "reward", "terminated", "priority")
    sums = replay.nbytes - sum(replay.storage[name].nbytes for name in columns)
    # Two numbers of 8 bytes for every 16 rows, and for the nodes above.
    assert sums == pytest.approx(100_000 * (2 * 8 / 16), rel=0.05)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("deterministic", [False, True])
def test_a_captured_graph_draws_what_python_does(deterministic, monkeypatch):
    """While episodes come in between, over the oldest ones, too."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(deterministic)
    captured, plain = (buffer(capacity=30_000, horizon=5, device="cuda") for _ in range(2))
    for replay in (captured, plain):
        for number in range(150):
            replay.add(tagged(number, 125, number % 3 == 0))
    turn = torch.zeros((), device="cuda")

    def step(replay):
        batch = replay.sample(256)
        # Rows drawn twice get the same priority twice.
        replay.update_priorities(batch.index, (batch.index * 0.618 + turn * 0.414).frac() ** 4 * 3)
        return batch

    try:
        torch.cuda.set_sync_debug_mode("error")
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            step(captured)
        torch.cuda.current_stream().wait_stream(aside)
        step(plain)
        torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(captured.generator)
        with torch.cuda.graph(graph):
            batch = step(captured)
        for number in range(300):
            turn.fill_(float(number))
            graph.replay()
            for name, column in vars(step(plain)).items():
                assert torch.equal(getattr(batch, name), column), name
            if number % 2:
                for replay in (captured, plain):
                    replay.add(tagged(1_000 + number, 125))
        again = SumTree(30_000, captured.alpha, captured.device)
        again.priority.copy_(captured.storage["priority"])
        again.rebuild(0, 30_000)
        for one, other in zip(captured._tree._running, again._running, strict=True):
            assert torch.equal(one, other)
        uniform = torch.rand(10_000, dtype=torch.float64)
        expected = SumTree(30_000, captured.alpha, torch.device("cpu"))
        expected.priority.copy_(captured.storage["priority"])
        expected.rebuild(0, 30_000)
        assert torch.equal(again.draw(uniform.cuda()).cpu(), expected.draw(uniform))
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("alpha", "beta"), [(0.6, 0.4), (1.0, 1.0), (0.6, 0.0), (0.0, 0.4)])
def test_weights(alpha, beta):
    replay = buffer(alpha=alpha, beta=beta)
    ladder(replay)
    batch = replay.sample(12)
    priorities = [(step + 1) ** 2 / 10 for step in range(20)]
    total = sum(p**alpha for p in priorities)
    unscaled = [(24 * priorities[step] ** alpha / total) ** -beta for _, step in starts_of(batch)]
    np.testing.assert_allclose(batch.weight, np.array(unscaled) / max(unscaled), rtol=1e-5)
    assert batch.weight.max() == 1


def priorities_of(replay):
    """Priorities by start, relative to the lowest: with alpha and beta 1 a weight is lowest / priority."""
    batch = replay.sample(20_000)
    return dict(zip(starts_of(batch), (1 / batch.weight).tolist(), strict=True))


def rows_of(replay, draws):
    """The row that each start is in."""
    batch = replay.sample(draws)
    return dict(zip(starts_of(batch), batch.index.tolist(), strict=True))


def test_priorities_change_only_at_the_index():
    replay = buffer(alpha=1.0, beta=1.0)
    replay.add(tagged(1, 9))
    rows = rows_of(replay, 200)
    replay.update_priorities(torch.tensor([rows[1, 2], rows[1, 4]]), torch.tensor([3.0, 0.5]))
    found = priorities_of(replay)
    # The others keep 1, which a first episode gets.
    expected = {(1, t): {2: 3.0, 4: 0.5}.get(t, 1.0) / 0.5 for t in range(6)}
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_priority_of_zero_becomes_the_floor():
    replay = buffer(alpha=0.5, beta=1.0)
    replay.add(tagged(1, 5))
    rows = rows_of(replay, 50)
    replay.update_priorities(torch.tensor([rows[1, 0]]), torch.tensor([0.0]))
    batch = replay.sample(20_000)
    weights = dict(zip(starts_of(batch), batch.weight.tolist(), strict=True))
    # (1e-6 / 1)^0.5 = 1e-3 is the ratio of the chances.
    assert weights == pytest.approx({(1, 0): 1.0, (1, 1): 1e-3}, rel=1e-4)


def test_new_episodes_get_the_highest_priority():
    replay = buffer(alpha=1.0, beta=1.0)
    replay.add(tagged(1, 9))
    rows = rows_of(replay, 200)
    replay.update_priorities(torch.tensor([rows[1, 2], rows[1, 4]]), torch.tensor([6.0, 0.5]))
    replay.add(tagged(2, 6, terminated=True))
    found = priorities_of(replay)
    assert found[1, 4] == 1
    assert {t: found[2, t] for t in range(6)} == pytest.approx(dict.fromkeys(range(6), 12.0), rel=1e-4)
    assert found[1, 0] == pytest.approx(2, rel=1e-4)


def test_the_highest_priority_can_be_below_one():
    replay = buffer(alpha=1.0, beta=1.0)
    replay.add(tagged(1, 5))
    rows = rows_of(replay, 50)
    replay.update_priorities(torch.tensor([rows[1, 0], rows[1, 1]]), torch.tensor([0.01, 0.2]))
    replay.add(tagged(2, 4))
    assert priorities_of(replay) == pytest.approx({(1, 0): 1, (1, 1): 20, (2, 0): 20}, rel=1e-3)


def test_same_seed_same_draws():
    def draws(seed):
        replay = buffer(seed=seed)
        replay.add(tagged(1, 30, terminated=False))
        return replay.sample(50).index

    torch.manual_seed(1)
    first = draws(4)
    torch.manual_seed(2)
    assert torch.equal(draws(4), first)
    assert not torch.equal(draws(5), first)
