"""Replay of tagged episodes: an observation says which episode it is from, and which step."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from agents.replay import Episode, ReplayBuffer
from agents.sums import SumTree

FLOOR = 1e-6


def buffer(*, capacity=60, horizon=3, alpha=0.6, beta=0.4, seed=0, obs_dim=2, action_dim=2, device="cpu"):
    return ReplayBuffer(
        obs_dim=obs_dim,
        action_dim=action_dim,
        capacity=capacity,
        horizon=horizon,
        alpha=alpha,
        beta=beta,
        generator=torch.Generator(device).manual_seed(seed),
    )


def tagged(number, length, terminated=False):
    """Observation t is (number, t), action t is (number, t) / 1000, reward t is 100 number + t + 1."""
    steps = torch.arange(length + 1.0)
    obs = torch.stack([torch.full_like(steps, number), steps], 1)
    return Episode(obs, obs[:-1] / 1000, 100 * number + steps[:-1] + 1, terminated)


def starts_of(batch):
    """Where the sequences begin: [(episode, step)]."""
    return [(int(a), int(b)) for a, b in batch.obs[0].tolist()]


def check_sequences(batch, horizon, episodes):
    """Every sequence is contiguous in one episode, or in the absorbing tail of a terminated one."""
    columns = (batch.obs, batch.action, batch.reward, batch.terminated)
    obs, action, reward, terminated = (column.tolist() for column in columns)
    # One sequence per row drawn: all that a row gives is the same each time.
    for b in {row: b for b, row in enumerate(batch.index.tolist())}.values():
        number, first = (int(x) for x in obs[0][b])
        length, ends = episodes[number]
        assert first < length
        assert ends or first + horizon < length
        for t in range(horizon + 1):
            assert obs[t][b] == [number, min(first + t, length)]
        for t in range(horizon):
            step = first + t
            if step < length:
                assert action[t][b] == pytest.approx([number / 1000, step / 1000])
                assert reward[t][b] == 100 * number + step + 1
                assert terminated[t][b] == (1 if ends and step == length - 1 else 0)
            else:
                assert ends
                assert (reward[t][b], terminated[t][b]) == (0, 1)
                assert all(-1 <= x <= 1 for x in action[t][b])


class Ring:
    """Which sequences a ring of rows still holds whole, by looking at each row."""

    def __init__(self, capacity, horizon):
        self.rows, self.horizon, self.cursor = [None] * capacity, horizon, 0

    def add(self, number, length, ends):
        count = length + (self.horizon if ends else 1)
        if self.cursor + count > len(self.rows):
            self.cursor = 0
        for t in range(count):
            self.rows[self.cursor + t] = (number, t)
        self.cursor += count

    def starts(self, episodes):
        found = set()
        for row, tag in enumerate(self.rows):
            if tag is None:
                continue
            number, t = tag
            length, ends = episodes[number]
            whole = self.rows[row : row + self.horizon + 1] == [
                (number, t + k) for k in range(self.horizon + 1)
            ]
            if whole and t < (length if ends else length - self.horizon):
                found.add(tag)
        return found


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    st.integers(1, 5),
    st.integers(12, 40),
    st.lists(st.tuples(st.integers(1, 14), st.booleans()), min_size=1, max_size=14),
)
def test_sequences_never_cross_an_episode(horizon, capacity, episodes):
    replay, ring = buffer(capacity=capacity, horizon=horizon, alpha=0.0), Ring(capacity, horizon)
    for number, (length, ends) in enumerate(episodes):
        if length + (horizon if ends else 1) > capacity:
            continue
        replay.add(tagged(number, length, ends))
        ring.add(number, length, ends)
        expected = ring.starts(episodes)
        assert len(replay) == sum(tag is not None for tag in ring.rows)
        assert replay.ready == bool(expected)
        if not expected:
            continue
        # At most 40 of them, drawn uniformly: each is missed with probability below e^-20.
        batch = replay.sample(800)
        check_sequences(batch, horizon, episodes)
        assert set(starts_of(batch)) == expected
        # New priorities must not wake what cannot be drawn.
        replay.update_priorities(batch.index, torch.rand(800))


def test_shapes_and_types():
    replay = buffer(horizon=3, obs_dim=5, action_dim=4)
    replay.add(Episode(torch.randn(11, 5), torch.randn(10, 4), torch.randn(10), True))
    batch = replay.sample(7)
    shapes = {k: tuple(v.shape) for k, v in vars(batch).items()}
    assert shapes == {
        "obs": (4, 7, 5),
        "action": (3, 7, 4),
        "reward": (3, 7),
        "terminated": (3, 7),
        "index": (7,),
        "weight": (7,),
    }
    assert all(v.dtype == torch.float32 for k, v in vars(batch).items() if k != "index")


def test_last_steps_of_a_truncated_episode_start_no_sequence():
    replay = buffer(horizon=3)
    replay.add(tagged(1, 9))
    assert set(starts_of(replay.sample(400))) == {(1, t) for t in range(6)}


@pytest.mark.parametrize(("length", "ready"), [(1, False), (3, False), (4, True)])
def test_a_short_truncated_episode_starts_nothing(length, ready):
    replay = buffer(horizon=3)
    assert not replay.ready
    replay.add(tagged(1, length))
    assert replay.ready == ready
    replay.add(tagged(2, 9))  # as the first episode with a priority, it must still get one
    assert {n for n, _ in starts_of(replay.sample(400))} == ({1, 2} if ready else {2})


def test_absorbing_tail():
    replay = buffer(horizon=3, alpha=0.0)
    replay.add(tagged(7, 5, terminated=True))
    batch = replay.sample(500)
    starts = starts_of(batch)
    assert set(starts) == {(7, t) for t in range(5)}
    b = starts.index((7, 4))
    assert batch.obs[:, b].tolist() == [[7, 4], [7, 5], [7, 5], [7, 5]]
    assert batch.reward[:, b].tolist() == [705, 0, 0]
    assert batch.terminated[:, b].tolist() == [1, 1, 1]
    b = starts.index((7, 1))
    assert batch.terminated[:, b].tolist() == [0, 0, 0]
    b = starts.index((7, 2))
    assert batch.terminated[:, b].tolist() == [0, 0, 1]


def test_absorbing_actions_are_random():
    replay = buffer(capacity=10_000, horizon=5, alpha=0.0)
    for number in range(300):
        replay.add(tagged(number, 1, terminated=True))
    batch = replay.sample(4_000)
    tail = batch.action[1:].reshape(-1, 2).unique(dim=0)
    assert len(tail) == 300 * 4
    assert tail.abs().max() <= 1
    assert tail.mean().abs() < 0.06
    assert tail.std().item() == pytest.approx(3**-0.5, rel=0.05)


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


def test_priorities_change_only_at_the_index():
    replay = buffer(alpha=1.0, beta=1.0)
    replay.add(tagged(1, 9))
    batch = replay.sample(200)
    rows = dict(zip(starts_of(batch), batch.index.tolist(), strict=True))
    replay.update_priorities(torch.tensor([rows[1, 2], rows[1, 4]]), torch.tensor([3.0, 0.5]))
    found = priorities_of(replay)
    # The others keep 1, which a first episode gets.
    expected = {(1, t): {2: 3.0, 4: 0.5}.get(t, 1.0) / 0.5 for t in range(6)}
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_priority_of_zero_becomes_the_floor():
    replay = buffer(alpha=0.5, beta=1.0)
    replay.add(tagged(1, 5))
    batch = replay.sample(50)
    rows = dict(zip(starts_of(batch), batch.index.tolist(), strict=True))
    replay.update_priorities(torch.tensor([rows[1, 0]]), torch.tensor([0.0]))
    batch = replay.sample(20_000)
    weights = dict(zip(starts_of(batch), batch.weight.tolist(), strict=True))
    # (1e-6 / 1)^0.5 = 1e-3 is the ratio of the chances.
    assert weights == pytest.approx({(1, 0): 1.0, (1, 1): 1e-3}, rel=1e-4)


def test_new_episodes_get_the_highest_priority():
    replay = buffer(alpha=1.0, beta=1.0)
    replay.add(tagged(1, 9))
    batch = replay.sample(200)
    rows = dict(zip(starts_of(batch), batch.index.tolist(), strict=True))
    replay.update_priorities(torch.tensor([rows[1, 2], rows[1, 4]]), torch.tensor([6.0, 0.5]))
    replay.add(tagged(2, 6, terminated=True))
    found = priorities_of(replay)
    assert found[1, 4] == 1
    assert {t: found[2, t] for t in range(6)} == pytest.approx(dict.fromkeys(range(6), 12.0), rel=1e-4)
    assert found[1, 0] == pytest.approx(2, rel=1e-4)


def test_the_highest_priority_can_be_below_one():
    replay = buffer(alpha=1.0, beta=1.0)
    replay.add(tagged(1, 5))
    batch = replay.sample(50)
    rows = dict(zip(starts_of(batch), batch.index.tolist(), strict=True))
    replay.update_priorities(torch.tensor([rows[1, 0], rows[1, 1]]), torch.tensor([0.01, 0.2]))
    replay.add(tagged(2, 4))
    assert priorities_of(replay) == pytest.approx({(1, 0): 1, (1, 1): 20, (2, 0): 20}, rel=1e-3)


def test_overwritten_rows_are_never_drawn():
    """Rows: 9 + 1 of the first, 9 + 1 of the second; 5 + 1 of the third over the first's first six."""
    replay = buffer(capacity=20, horizon=3, alpha=0.0)
    for number, length in ((1, 9), (2, 9), (3, 5)):
        replay.add(tagged(number, length))
    expected = {(2, t) for t in range(6)} | {(3, 0), (3, 1)}
    assert set(starts_of(replay.sample(1_000))) == expected
    assert len(replay) == 20
    # The first one's last row that could start was 5, its rows 6 to 9 are left.
    replay.add(tagged(4, 2))
    assert set(starts_of(replay.sample(1_000))) == expected


def test_what_is_left_of_an_overwritten_episode_can_be_drawn():
    replay = buffer(capacity=20, horizon=3, alpha=0.0)
    for number, length in ((1, 9), (2, 9), (3, 2)):
        replay.add(tagged(number, length))
    expected = {(1, t) for t in (3, 4, 5)} | {(2, t) for t in range(6)}
    assert set(starts_of(replay.sample(1_000))) == expected


def test_an_episode_may_fill_the_buffer():
    replay = buffer(capacity=10, horizon=3)
    for number in (1, 2):
        replay.add(tagged(number, 9))
        assert set(starts_of(replay.sample(300))) == {(number, t) for t in range(6)}
    replay.add(tagged(3, 7, terminated=True))
    assert {n for n, _ in starts_of(replay.sample(300))} == {3}


@pytest.mark.parametrize(("length", "terminated"), [(10, False), (8, True)])
def test_too_long_an_episode(length, terminated):
    replay = buffer(capacity=10, horizon=3)
    with pytest.raises(ValueError, match=r"replay\.capacity is 10"):
        replay.add(tagged(1, length, terminated))
    assert len(replay) == 0


@pytest.mark.parametrize("column", ["obs", "reward"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite(column, bad):
    replay = buffer()
    replay.add(tagged(1, 9))
    episode = tagged(2, 9)
    getattr(episode, column)[3] = bad
    with pytest.raises(ValueError, match="not finite"):
        replay.add(episode)
    assert {n for n, _ in starts_of(replay.sample(200))} == {1}


def test_actions_that_are_not_finite():
    episode = tagged(1, 9)
    episode.action[3, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        buffer().add(episode)


def shaped(obs=(10, 2), action=(9, 2), reward=(9,)):
    return Episode(torch.ones(obs), torch.ones(action), torch.ones(reward), False)


@pytest.mark.parametrize(
    "shapes",
    [{"obs": (9, 2)}, {"obs": (10, 3)}, {"action": (9, 3)}, {"reward": (8,)}, {"reward": (9, 1)}],
    ids=str,
)
def test_wrong_shapes(shapes):
    with pytest.raises((ValueError, RuntimeError)):
        buffer().add(shaped(**shapes))


@pytest.mark.parametrize(
    "shapes", [{"obs": (10, 1)}, {"obs": (1, 2)}, {"action": (9, 1)}, {"reward": (1,)}], ids=str
)
def test_wrong_shapes_that_broadcast(shapes):
    with pytest.raises((ValueError, RuntimeError)):
        buffer().add(shaped(**shapes))


def test_later_samples_are_equal_bit_by_bit_after_a_restart():
    replay = buffer(capacity=30, seed=1)
    for number, (length, ends) in enumerate([(9, False), (7, True), (9, False), (8, False)]):
        replay.add(tagged(number, length, ends))  # the last one over the first
    batch = replay.sample(10)
    replay.update_priorities(batch.index, torch.rand(10, generator=torch.Generator().manual_seed(0)))
    state = replay.state_dict()
    again = buffer(capacity=30, seed=99)
    again.load_state_dict(state)
    again.generator.set_state(replay.generator.get_state())
    for number in range(4, 9):
        for one in (replay, again):
            one.add(tagged(number, 6, number % 2 == 0))
        assert (replay.ready, len(replay)) == (again.ready, len(again))
        first, second = replay.sample(40), again.sample(40)
        for name, column in vars(first).items():
            assert torch.equal(column, getattr(second, name)), name
        for one in (replay, again):
            one.update_priorities(first.index, torch.linspace(0.1, 4, 40))


def test_stored_state_shares_no_memory():
    replay = buffer()
    replay.add(tagged(1, 9))
    state = replay.state_dict()
    kept = {name: column.clone() for name, column in state.items()}
    replay.update_priorities(torch.arange(3), torch.full((3,), 9.0))
    replay.add(tagged(2, 9))
    assert all(torch.equal(state[name], kept[name]) for name in kept)
    other = buffer()
    other.load_state_dict(state)
    other.update_priorities(torch.arange(3), torch.full((3,), 9.0))
    assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_a_smaller_state_replaces_a_larger_one():
    small = buffer()
    small.add(tagged(1, 9))
    replay = buffer()
    for number in (2, 3, 4):
        replay.add(tagged(number, 9))
    replay.load_state_dict(small.state_dict())
    assert len(replay) == 10
    assert set(starts_of(replay.sample(300))) == {(1, t) for t in range(6)}


@pytest.mark.parametrize(
    "other",
    [
        {"obs_dim": 3},
        {"action_dim": 1},
        {"capacity": 9},
    ],
    ids=str,
)
def test_a_state_that_does_not_fit(other):
    replay = buffer()
    replay.add(tagged(1, 9))
    with pytest.raises(ValueError, match="stored replay"):
        buffer(**other).load_state_dict(replay.state_dict())


@pytest.mark.parametrize("cursor", [-1, 11])
def test_a_state_with_an_impossible_cursor(cursor):
    replay = buffer()
    replay.add(tagged(1, 9))
    with pytest.raises(ValueError, match="cursor"):
        buffer().load_state_dict(replay.state_dict() | {"cursor": torch.tensor(cursor)})


def test_a_state_with_a_column_too_short():
    replay = buffer()
    replay.add(tagged(1, 9))
    state = replay.state_dict()
    with pytest.raises(ValueError, match="'reward'"):
        buffer().load_state_dict(state | {"reward": state["reward"][:-1]})


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
