"""What replay stores: sequences within episodes, absorbing tails, rows overwritten, what it refuses, its state."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from replays import buffer, check_sequences, starts_of, tagged

from agents.replay import Episode


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
