"""Running sums, and the tree that rows are drawn from, against plain cumulative sums over all rows."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.sums import SumTree, _product, running_sum

CPU = torch.device("cpu")
LAST = 1 - 2**-53  # the largest number that torch.rand gives in float64
SHAPES = [{"leaf": 2, "fan_out": 2, "root": 2}, {"leaf": 3, "fan_out": 5, "root": 4}, {}]


def tree(priority, alpha=1.0, **shape):
    made = SumTree(len(priority), alpha, CPU, **shape)
    made.priority.copy_(torch.as_tensor(priority))
    made.rebuild(0, len(priority))
    return made


def cumulative(priority, alpha):
    """Ends of the rows' shares of [0, total], in plain NumPy."""
    chances = np.where(priority > 0, np.asarray(priority, np.float64) ** alpha, 0.0)
    return np.cumsum(chances)


def check_draws(made, alpha, uniform):
    """The rows are those that the plain cumulative sum gives, but for numbers next to an end of a share."""
    ends = cumulative(made.priority.numpy(), alpha)
    target = uniform.numpy() * ends[-1]
    expected = np.searchsorted(ends, target, side="right")
    near = np.stack([ends[np.minimum(expected, len(ends) - 1)], np.append(0, ends)[expected]])
    clear = np.abs(near - target).min(0) > 1e-12 * ends[-1]
    assert clear.mean() > 0.99
    drawn = made.draw(uniform).numpy()
    np.testing.assert_array_equal(drawn[clear], expected[clear])
    assert (made.priority.numpy()[drawn] > 0).all()


def test_running_sum():
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(running_sum(values, 1), torch.tensor([[1.0, 3.0], [3.0, 7.0]]))
    assert torch.equal(running_sum(values, 0), torch.tensor([[1.0, 2.0], [4.0, 6.0]]))


@pytest.mark.parametrize(("shape", "dim"), [((7,), 0), ((4, 9), 1), ((9, 4), 0), ((2, 5, 3), 1)])
def test_running_sum_as_a_product(shape, dim):
    """What a GPU computes."""
    values = torch.randint(0, 100, shape, generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(_product(values, dim), values.cumsum(dim))
    assert _product(values, dim).dtype == torch.float32


@pytest.mark.parametrize("sums", [running_sum, _product])
def test_running_sums_never_fall_and_stay_at_zeros(sums):
    generator = torch.Generator().manual_seed(0)
    for size in (2, 16, 65, 200):
        values = torch.rand(300, size, generator=generator, dtype=torch.float64) ** 9
        values[torch.rand(300, size, generator=generator) < 0.5] = 0
        steps = sums(values, 1).diff(dim=1)
        assert (steps >= 0).all()
        assert (steps[values[:, 1:] == 0] == 0).all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("rows", [1, 2, 31, 256, 512])
def test_on_a_gpu_running_sums_never_fall_and_stay_at_zeros(rows):
    for size in (2, 16, 64, 489, 1024):
        values = torch.rand(rows, size, device="cuda", dtype=torch.float64) ** 9
        values[torch.rand(rows, size, device="cuda") < 0.5] = 0
        so_far = running_sum(values, 1)
        steps = so_far.diff(dim=1)
        assert (steps >= 0).all()
        assert (steps[values[:, 1:] == 0] == 0).all()
        torch.testing.assert_close(so_far.cpu(), values.cpu().cumsum(1))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_row_gets_its_share(shape):
    """With whole priorities that sum up to S, the middles of S equal parts of [0, 1) hit row i priority[i] times."""
    priority = torch.randint(0, 4, (50,), generator=torch.Generator().manual_seed(1)).float()
    priority[:7] = priority[20:31] = priority[-3:] = 0
    total = int(priority.sum())
    uniform = (torch.arange(total, dtype=torch.float64) + 0.5) / total
    expected = torch.arange(50).repeat_interleave(priority.long())
    assert torch.equal(tree(priority, **shape).draw(uniform), expected)


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.integers(1, 700),
    st.tuples(st.integers(1, 5), st.integers(2, 5), st.integers(1, 5)),
    st.sampled_from([0.0, 0.3, 0.6, 1.0]),
    st.floats(0, 0.95),
    st.integers(0, 2**31),
)
def test_draws_are_those_of_a_plain_cumulative_sum(rows, shape, alpha, empty, seed):
    generator = torch.Generator().manual_seed(seed)
    priority = torch.rand(rows, generator=generator) ** 8 * 50
    priority[torch.rand(rows, generator=generator) < empty] = 0
    priority[int(torch.randint(rows, (1,), generator=generator))] = 0.5
    made = tree(priority, alpha, **dict(zip(("leaf", "fan_out", "root"), shape, strict=True)))
    uniform = torch.rand(200, generator=generator, dtype=torch.float64)
    check_draws(made, alpha, uniform)
    # Again with new priorities at some rows, several of them more than once.
    index = torch.randint(rows, (40,), generator=generator)
    made.priority[index] = torch.rand(40, generator=generator)
    made.refresh(index)
    check_draws(made, alpha, uniform)


def test_a_tree_of_full_size():
    """20,000 rows below the root alone, 200,000 in three levels, compared at many numbers."""
    generator = torch.Generator().manual_seed(0)
    for rows in (10_000, 200_000):
        made = tree(torch.rand(rows, generator=generator) ** 4, 0.6)
        check_draws(made, 0.6, torch.rand(5_000, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0])
def test_rounding_draws_no_row_of_priority_zero(shape, alpha):
    """At, just below and just above every end of a share, of priorities from 1e-38 to 1e38."""
    generator = torch.Generator().manual_seed(2)
    priority = 10 ** (76 * torch.rand(3_000, generator=generator) - 38)
    priority[torch.rand(3_000, generator=generator) < 0.7] = 0
    priority[:100] = priority[-200:] = 0
    for values in (priority, priority.clamp(max=1), (priority > 0).float() / 3):
        made = tree(values, alpha, **shape)
        ends = torch.as_tensor(cumulative(values.numpy(), alpha))
        share = (ends / ends[-1]).clamp(max=LAST)
        ones = torch.ones_like(share)
        uniform = torch.cat([share, share.nextafter(0 * ones), share.nextafter(ones).clamp(max=LAST)])
        assert (values[made.draw(uniform)] > 0).all()
    first, *_, last = values.nonzero()
    assert made.draw(torch.tensor([0.0, LAST], dtype=torch.float64)).tolist() == [first, last]


def test_a_remainder_beyond_a_child_draws_its_last_row():
    """What rounding can leave of a target is more than the child has; what follows it has priority 0."""
    made = tree([1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0], leaf=4, fan_out=2, root=2)
    made._sums[-1][0, 0] = made._running[-1][0, 1] = 2 + 1e-9  # as if summed with an error
    assert made.draw(torch.tensor([(2 + 0.5e-9) / made._running[-1][0, -1]])).tolist() == [1]


@pytest.mark.parametrize("shape", [{"fan_out": 2, "root": 3}, {}], ids=str)
def test_sums_do_not_drift(shape):
    """After many changes they have the bits of sums over the same priorities made at once."""
    generator = torch.Generator().manual_seed(3)
    made = tree(torch.rand(500, generator=generator), 0.6, **shape)
    for _ in range(300):
        index = torch.randint(500, (20,), generator=generator)
        made.priority[index] = 10 ** (12 * torch.rand(20, generator=generator) - 6)
        made.refresh(index)
    again = tree(made.priority, 0.6, **shape)
    for one, other in zip((*made._sums, *made._running), (*again._sums, *again._running), strict=True):
        assert torch.equal(one, other)


def test_whether_a_row_can_be_drawn():
    made = tree([0.0] * 40, 0.0, **SHAPES[0])
    assert not made.any()
    made.priority[17] = 1e-45
    made.refresh(torch.tensor([17]))
    assert made.any()
    assert made.draw(torch.tensor([0, 0.5, LAST], dtype=torch.float64)).tolist() == [17] * 3
