"""The slices of parameters that units own, and what the gradients in them add up to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import accumulate

import torch
from torch import Tensor, nn

from tdmpc_prune.pruning.groups import Group

CACHED = 2**15
"""Entries of a parameter that are worked on at a time: their four terms fit the processor's cache."""


class Slices:
    """The slices S_u of all units: where each row and column of each parameter adds up.

    An entry that lies in the slices of two units counts for both.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        owners: dict[nn.Parameter, dict[int, Tensor]] = {}
        starts = [0, *accumulate(group.units for group in groups)]
        self.units = starts[-1]
        for group, start in zip(groups, starts, strict=False):
            for member in group.members:
                for _, parameter, dim in member.slices():
                    owner = owners.setdefault(parameter, {})
                    # What is of no unit (actions among a layer's inputs) goes to one more, dropped later.
                    owner.setdefault(dim, torch.full((parameter.shape[dim],), self.units))
                    owner[dim][member.index] = start + torch.arange(group.units)
        self.device = next(iter(owners)).device
        positions = [owner for by_dim in owners.values() for owner in by_dim.values()]
        lengths = [len(p) for p in positions]
        # One vector for all sums: of every row or column four of them, and where each belongs in [4, U + 1].
        self._pieces = torch.zeros(4 * sum(lengths), device=self.device)
        terms = torch.arange(4)[:, None] * (self.units + 1)
        self._place = torch.cat([(terms + p).flatten() for p in positions]).to(self.device)
        pieces = iter(self._pieces.split([4 * n for n in lengths]))
        self._places = {p: {dim: next(pieces).view(4, -1) for dim in by_dim} for p, by_dim in owners.items()}
        # A GPU has no such cache: there, all that fits into one operation goes into it.
        room = CACHED if self.device.type == "cpu" else sum(p.numel() for p in owners)
        self._scratch = torch.empty(4 * max(room, *(p[0].numel() for p in owners)), device=self.device)
        self._plans: dict[tuple[nn.Parameter, ...], list[_Block]] = {}
        self._owners = {p: {d: o.to(self.device) for d, o in by_dim.items()} for p, by_dim in owners.items()}
        self._seen: set[nn.Parameter] = set()
        self._carried: Tensor | None = None
        self.observed = False
        """Whether any gradient was ever added: none is of parameters that a removal has replaced."""
        self.size = torch.tensor(
            [group.unit_parameters for group in groups for _ in range(group.units)],
            dtype=torch.float64,
            device=self.device,
        )
        """N_u [U]."""

    def add(self, parameters: Iterable[nn.Parameter]) -> None:
        """Adds the sums of |g|, g^2, theta g and (theta g)^2 over each row and column of parameters."""
        observed = tuple(p for p in parameters if p.grad is not None and p in self._places)
        if not self._seen.isdisjoint(observed):  # sums are written, not added: what stands there is kept
            self._carried = self.take()
        self._seen.update(observed)
        self.observed |= bool(observed)
        if observed not in self._plans:
            self._plans[observed] = _blocks(observed, self._places, self._scratch)
        with one_thread():
            for block in self._plans[observed]:
                block.add()

    def take(self) -> Tensor:
        """The sums of this update, for `totals`, and starts anew."""
        for parameter in self._places.keys() - self._seen:
            for piece in self._places[parameter].values():
                piece.zero_()
        self._seen.clear()
        taken = self._pieces.clone() if self._carried is None else self._pieces + self._carried
        self._carried = None
        return taken

    def totals(self, taken: Tensor) -> Tensor:
        """The four sums [T, 4, U] over all slices, of what T updates brought [T, ...]."""
        totals = torch.zeros(len(taken), 4 * (self.units + 1), dtype=torch.float64, device=self.device)
        totals.scatter_add_(1, self._place.expand(len(taken), -1), taken.double())
        return totals.view(len(taken), 4, -1)[:, :, :-1]

    def norms(self) -> Tensor:
        """L2 norms [U] of the slices as they are now."""
        totals = torch.zeros(self.units + 1, dtype=torch.float64, device=self.device)
        for p, owners in self._owners.items():
            for dim, owner in owners.items():
                squares = p.square() if p.dim() == 1 else p.square().sum(1 - dim)
                totals.index_add_(0, owner, squares.double())
        return totals[:-1].sqrt()


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes on one thread meanwhile: for sums this small, a second one costs more than it adds."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Block:
    """Several small parameters, or some rows of a large one: as much as the processor's cache holds.

    All that is small is copied side by side, so that a term of them all is one operation: at laptop size calls
    cost more than arithmetic. Views are made once: a view costs as much as a small sum.

    Args:
        parts: parameters, each with its rows.
        places: where sums go [4, rows or columns], by dimension, for each parameter.
        scratch: room for the four terms.
    """

    def __init__(
        self,
        parts: Sequence[tuple[nn.Parameter, slice]],
        places: Mapping[nn.Parameter, Mapping[int, Tensor]],
        scratch: Tensor,
    ) -> None:
        self._parts = parts
        sizes = [p[rows].numel() for p, rows in parts]
        terms = scratch[: 4 * sum(sizes)].view(4, -1)
        self._terms = terms.unbind()
        self._gradients: list[Tensor] = []
        self._values: list[Tensor] = []
        self._sums: list[tuple[Tensor, int, Tensor, bool]] = []
        for (parameter, rows), sheet in zip(parts, terms.split(sizes, dim=1), strict=True):
            shape = parameter[rows].shape
            self._gradients.append(sheet[1].view(shape))
            self._values.append(sheet[2].view(shape))
            for dim, piece in places[parameter].items():
                place = piece[:, rows] if dim == 0 else piece
                # A column goes on in the next block, a row does not.
                goes_on = dim == 1 and rows.start > 0
                self._sums.append((sheet.view(4, *shape), 2 - dim, place, goes_on))

    def add(self) -> None:
        """Writes the sums of this block to their places, or adds them where a block before it wrote."""
        absolute, square, first_order, saliency = self._terms
        if len(self._parts) == 1:
            parameter, rows = self._parts[0]
            assert parameter.grad is not None, "only parameters with a gradient are observed"
            gradient, value = parameter.grad[rows].reshape(-1), parameter[rows].reshape(-1)
        else:
            torch._foreach_copy_(self._gradients, [p.grad for p, _ in self._parts if p.grad is not None])
            torch._foreach_copy_(self._values, [p for p, _ in self._parts])
            gradient, value = square, first_order
        torch.abs(gradient, out=absolute)
        torch.mul(value, gradient, out=first_order)
        torch.mul(gradient, gradient, out=square)
        torch.mul(first_order, first_order, out=saliency)
        for sheet, dim, place, goes_on in self._sums:
            if sheet.dim() == 2:  # a vector's terms are its sums
                place.copy_(sheet)
            elif goes_on:
                place += sheet.sum(dim)
            else:
                torch.sum(sheet, dim, out=place)


def _blocks(
    parameters: Sequence[nn.Parameter],
    places: Mapping[nn.Parameter, Mapping[int, Tensor]],
    scratch: Tensor,
) -> list[_Block]:
    """Blocks that hold these parameters."""
    room = scratch.numel() // 4
    small: list[list[tuple[nn.Parameter, slice]]] = [[]]
    large: list[list[tuple[nn.Parameter, slice]]] = []
    left = room
    for parameter in parameters:
        if parameter.numel() > room:
            rows = max(1, room // parameter[0].numel())
            starts = range(0, len(parameter), rows)
            large += [[(parameter, slice(i, min(i + rows, len(parameter))))] for i in starts]
            continue
        if parameter.numel() > left:
            small.append([])
            left = room
        small[-1].append((parameter, slice(0, len(parameter))))
        left -= parameter.numel()
    return [_Block(parts, places, scratch) for parts in (*large, *small) if parts]
