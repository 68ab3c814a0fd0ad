"""Lyapunov functions of a linear loop, and how often a path violates one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Lyapunov:
    """V(d) = d' P d of deviations d = x - x*, and what it promises for the linear loop it comes from."""

    matrix: Floats
    """P [D, D]."""
    source: Literal["closed loop", "LQR"]
    """The reference's own loop; or that of an LQR, where the reference's own is not stable."""
    decrease: float
    """The linear loop has V(d') <= (1 - decrease) V(d) for every d."""
    level: float
    """V on the surface of the largest ellipsoid of V within the region."""

    def __call__(self, deviations: Floats) -> Floats:
        """V [...] of deviations [..., D]."""
        return np.einsum("...i,ij,...j->...", deviations, self.matrix, deviations)


def lyapunov_function(a: Floats, b: Floats, gain: Floats, half_widths: Floats) -> Lyapunov:
    """V of the closed loop d' = (A + B K) d; of an LQR's, if that loop is not stable.

    P solves (A + B K)' P (A + B K) - P = -Q with Q = diag(1 / half_widths^2): V sums the squares of all
    future deviations, each in half-widths of the region, so that no unit outweighs another.

    Args:
        a: A [D, D].
        b: B [D, A].
        gain: K = d action / d x [A, D].
        half_widths: of the region [D].

    Raises:
        ValueError: not even an LQR can hold it.
    """
    cost = np.diag(half_widths**-2)
    source: Literal["closed loop", "LQR"] = "closed loop"
    closed = a + b @ gain
    if spectral_radius(closed) >= 1:
        source, closed = "LQR", a + b @ lqr_gain(a, b, cost)
    matrix = linalg.solve_discrete_lyapunov(closed.T, cost)
    matrix = (matrix + matrix.T) / 2
    kept = linalg.eigvalsh(closed.T @ matrix @ closed, matrix).max()
    # V = c touches the plane d_i = h_i of the box where c = h_i^2 / inv(P)_ii.
    level = (half_widths**2 / np.diag(np.linalg.inv(matrix))).min()
    return Lyapunov(matrix, source, decrease=float(1 - kept), level=float(level))


def lqr_gain(a: Floats, b: Floats, cost: Floats) -> Floats:
    """K [A, D] of the action K d that minimises the sum of d' cost d + |action|^2, actions in [-1, 1] units.

    Raises:
        ValueError: nothing stabilises the system.
    """
    p = linalg.solve_discrete_are(a, b, cost, np.eye(b.shape[1]))
    return -np.linalg.solve(np.eye(b.shape[1]) + b.T @ p @ b, b.T @ p @ a)


def spectral_radius(matrix: Floats) -> float:
    """The largest modulus of a matrix's eigenvalues; a discrete linear system is stable below 1."""
    return float(np.abs(np.linalg.eigvals(matrix)).max())


def distance(deviation: Floats, half_widths: Floats) -> float:
    """The largest coordinate of a deviation [D], in half-widths: at most 1 within the region."""
    return float((np.abs(deviation) / half_widths).max())


def violation_rate(path: Floats, lyapunov: Lyapunov, half_widths: Floats, alpha: float, ball: float) -> float:
    """Share of the steps d -> d' of a path [T + 1, D] with V(d') - V(d) > -alpha V(d).

    Only steps from within the region and from outside the ball count.

    Raises:
        ValueError: no step counts.
    """
    values = lyapunov(path)
    inside = np.all(np.abs(path) <= half_widths, axis=1)
    counts = np.logical_and(inside[:-1], values[:-1] > ball * lyapunov.level)
    if not counts.any():
        raise ValueError("no step starts between the ball and the end of the region")
    return float((~(np.diff(values) <= -alpha * values[:-1]))[counts].mean())  # a step to NaN is one


def safe_boundary(excess: Sequence[tuple[float, float]], delta: float) -> float | None:
    """The largest sparsity up to which no run is worse than the reference by more than `delta`.

    What lies beyond the first that is worse is not safe, whatever a lucky run shows there; nor is its own
    whole percent, for runs of one target seldom hit it to the digit. None: the least sparse is not safe.

    Args:
        excess: sparsity of every run, and by how much its rate is above the reference's; in any order.
        delta: how much more is still safe.
    """
    unsafe = min((round(s, 2) for s, more in excess if more > delta), default=np.inf)
    return max((s for s, _ in excess if round(s, 2) < unsafe), default=None)
