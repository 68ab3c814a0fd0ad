"""Sums whose order is fixed, and a tree of them to draw rows from."""

from __future__ import annotations

import torch
from torch import Tensor

LEAF, FAN_OUT, ROOT = 16, 64, 1024
"""Rows below a leaf, children of an inner node, children of the root at most: a million rows take three levels."""
AT_ONCE = 1024
"""Leaves summed at once: with so few, no powers go to another thread, whose last ones could have other last bits."""
NEARLY_ZERO = 2.0**-100
"""In place of a random number or an exponent of 0: less than the least number drawn, and x^NEARLY_ZERO is 1."""


def running_sum(values: Tensor, dim: int) -> Tensor:
    """Sums so far of numbers >= 0 along a dimension; nothing leaves the device.

    They never fall, and do not change where a number is 0, whatever the rounding.
    """
    return _product(values, dim) if values.is_cuda else values.cumsum(dim)


def _product(values: Tensor, dim: int) -> Tensor:
    """Running sums as a product with a triangle of ones: PyTorch's scan on CUDA has no fixed order."""
    # Made anew each time: one kept from a CUDA graph's capture would be overwritten when the graph is replayed.
    steps = torch.arange(values.shape[dim], device=values.device)
    triangle = (steps.unsqueeze(1) <= steps).double()
    sums = (values.transpose(dim, -1).double() @ triangle).transpose(dim, -1)
    # A product may add up each of its numbers in an order of its own, so that rounding lets some fall.
    return torch.where(values > 0, sums, 0).cummax(dim).values.to(values.dtype)


class SumTree:
    """Draws rows with probability proportional to priority^alpha; cost and size do not depend on how many count.

    `priority` [rows] is the caller's to write, in place; `refresh` takes over what was written. A node holds
    the sum of priority^alpha below it, always summed afresh: nothing drifts, and the same priorities give the
    same sums. Nothing waits for the device, and no memory moves: `draw` and `refresh` can be captured in a
    CUDA graph.
    """

    def __init__(
        self,
        rows: int,
        alpha: float,
        device: torch.device,
        *,
        leaf: int = LEAF,
        fan_out: int = FAN_OUT,
        root: int = ROOT,
    ) -> None:
        # 0^0 is 1, but rows without priority stay out of uniform replay, too.
        self._exponent = max(alpha, NEARLY_ZERO)
        nodes = -(-rows // leaf)
        self._leaves = torch.zeros(nodes, leaf, device=device)
        self.priority = self._leaves.view(-1)[:rows]
        widths = []
        while nodes > root:
            widths.append((-(-nodes // fan_out), fan_out))
            nodes = widths[-1][0]
        widths.append((1, nodes))
        # From the parents of the leaves up, a parent a row: its children's sums, and those so far, from 0 on.
        self._sums = [torch.zeros(size, device=device, dtype=torch.float64) for size in widths]
        self._running = [torch.cat([sums[:, :1], sums], 1) for sums in self._sums]

    @property
    def nbytes(self) -> int:
        """Memory of priorities and sums."""
        return sum(tensor.nbytes for tensor in (self._leaves, *self._sums, *self._running))

    def any(self) -> bool:
        """Whether a row can be drawn; waits for the device."""
        return bool(self._running[-1][0, -1] > 0)

    def draw(self, uniform: Tensor) -> Tensor:
        """Rows [B], drawn with numbers [B] (float64) in [0, 1): never one of priority 0.

        There must be others; this is not checked.
        """
        *inner, root = self._running
        target = (uniform.clamp(min=NEARLY_ZERO) * root[0, -1]).unsqueeze(0)
        child = torch.searchsorted(root, target) - 1
        # What is left of a target is above 0, and by rounding alone more than there is below the child.
        target = (target - root.gather(1, child)).view(-1, 1)
        node = child[0]
        for level in reversed(inner):
            running = level.index_select(0, node)
            target = torch.minimum(target, running[:, -1:])
            child = torch.searchsorted(running, target) - 1
            target = target - running.gather(1, child)
            node = torch.add(child.squeeze(1), node, alpha=running.shape[1] - 1)
        running = running_sum(self._weights(node), 1)
        row = torch.searchsorted(running, torch.minimum(target, running[:, -1:]))
        return torch.add(row.squeeze(1), node, alpha=running.shape[1])

    def refresh(self, rows: Tensor) -> None:
        """Sums anew what is above these rows [N], in any order and as often as they come."""
        self._refresh(rows // self._leaves.shape[1])

    def rebuild(self, start: int, stop: int) -> None:
        """Sums anew what is above the rows from `start` to before `stop`."""
        leaf = self._leaves.shape[1]
        self._refresh(torch.arange(start // leaf, -(-stop // leaf), device=self._leaves.device))

    def _refresh(self, nodes: Tensor) -> None:
        for part in nodes.split(AT_ONCE):
            below = running_sum(self._weights(part), 1)
            for sums, running in zip(self._sums[:-1], self._running, strict=False):
                sums.view(-1)[part] = below[:, -1]
                part = part // sums.shape[1]
                below = running_sum(sums.index_select(0, part), 1)
                running[:, 1:][part] = below
            self._sums[-1][0, part] = below[:, -1]
        self._running[-1][:, 1:] = running_sum(self._sums[-1], 1)

    def _weights(self, leaves: Tensor) -> Tensor:
        """priority^alpha [N, rows below a leaf] in float64."""
        return self._leaves.index_select(0, leaves).double().pow(self._exponent)
