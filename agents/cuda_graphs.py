"""CUDA graphs: a thousand launches as one.

A GPU computes what TD-MPC asks of it faster than a processor can ask. A graph holds the addresses of the tensors
that it was captured with, so it is captured anew when units were removed: in a fraction of a second, since
nothing is compiled.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import nn

WARM_UP = 2
"""Calls before a capture: what libraries set up at their first call cannot be captured."""

Result = TypeVar("Result")


@contextmanager
def tf32() -> Iterator[None]:
    """Has CUDA multiply float32 matrices by its tensor cores meanwhile (compute capability 8.0 and later).

    Factors are rounded to 10 bits of mantissa, and added up in float32: a result is off by some 3e-4 of itself.
    """
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "tf32"
    try:
        yield
    finally:
        matmul.fp32_precision = before


class Captured(Generic[Result]):
    """Work on CUDA that is the same at each call, done by a graph from the third call on.

    Its results are overwritten by the next call. It must not wait for the device, and it may read other numbers
    only from tensors whose addresses stay; it is captured anew when the parameters given are others.

    Args:
        work: what to do.
        generators: of the random numbers that it draws.
    """

    def __init__(self, work: Callable[[], Result], generators: Sequence[torch.Generator] = ()) -> None:
        self._work, self._generators = work, list(generators)
        self._parameters: list[nn.Parameter] = []
        self._calls = 0
        self._recorded: tuple[torch.cuda.CUDAGraph, Result] | None = None

    def __call__(self, parameters: Iterable[nn.Parameter]) -> Result:
        """Does the work, which depends on these parameters; returns its result."""
        parameters = list(parameters)
        known = len(parameters) == len(self._parameters)
        if not known or any(p is not q for p, q in zip(parameters, self._parameters, strict=True)):
            self._parameters, self._calls, self._recorded = parameters, 0, None
            # Autograd's nodes that add up gradients belong to the stream that they were made on, and the default
            # one must not take part in a capture: a trace of the networks leaves some behind, in cycles.
            gc.collect()
        self._calls += 1
        if self._calls <= WARM_UP:
            return self._beside()
        if self._recorded is None:
            self._recorded = self._capture()
        graph, result = self._recorded
        graph.replay()
        return result

    def _beside(self) -> Result:
        """Does the work on a stream of its own, as a capture does."""
        stream, here = torch.cuda.Stream(), torch.cuda.current_stream()
        stream.wait_stream(here)
        with torch.cuda.stream(stream):
            result = self._work()
        here.wait_stream(stream)
        return result

    def _capture(self) -> tuple[torch.cuda.CUDAGraph, Result]:
        graph = torch.cuda.CUDAGraph()
        for generator in self._generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph):
            result = self._work()
        return graph, result
