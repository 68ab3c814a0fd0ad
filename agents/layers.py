"""Networks of linear layers, computed as a whole: what PyTorch does module by module, in fewer and quicker steps.

For float32 on a CPU. Three things are different there, and nothing else:

- Large matrix products are oneDNN's: PyTorch's own are MKL's, which uses half of what processors of other
  makers than Intel have. Where PyTorch was built without oneDNN, all are PyTorch's.
- Exponentials are of base 2: PyTorch's `elu` and `tanh` take 2 to 5 times as long. They are as exact where
  numbers are near 1, and 1e-7 off near 0.
- The backward pass is written out: one node of autograd per network in place of one per operation.

On Intel's processors MKL is the quickest: its products, its `exp` in `elu`, and its `tanh`. Where there are units for
matrices of bfloat16, planners multiply by them: see `brief`.

Planners decide by sorting values, where the last bit can matter. `alike` has every environment of a batch
computed as if it were alone, bit by bit.
"""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

LARGE = 2**20
"""Multiplications from which on oneDNN is quicker: a call of it costs 10 microseconds more."""
BRIEF, BRIEF_INPUTS = 2**23, 128
"""Multiplications and inputs from which on bfloat16 is quicker: it has to be converted to."""
FEW = 2**12
"""Numbers below which one call takes longer than what it does."""
FEWEST_ROWS = 16
"""From this many rows on, a row of a matrix product is the same bit by bit (seen, oneDNN and MKL)."""
FEWEST_OUTPUTS = 16
"""Below so many outputs, MKL rounds a row by where it lies in memory, if its length is no multiple of 4 (seen)."""


def _processor() -> str:
    """What is said of this processor: who made it, and on Linux what it can do."""
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else platform.processor()


ONEDNN = torch.backends.mkldnn.is_available()
_said = _processor()
MKL_IS_QUICK = torch.backends.mkl.is_available() and "GenuineIntel" in _said
"""Asked of the processor, not of the clock, which would not give the same answer each time."""
BFLOAT16 = ONEDNN and "amx_bf16" in _said
"""Whether it multiplies matrices of bfloat16 (Intel's AMX: Xeons from 2023 on)."""
# It keeps a compiled product for every shape, half a megabyte each. A few dozen are at work at a time, but every
# removal brings others: of the 1,024 that it keeps by default most are of former widths. Read at its first use.
for _setting in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_setting, "128")

LOG2_E, ONE, TWO = torch.tensor([math.log2(math.e), 1, 2]).unbind()
"""Tensors, since PyTorch makes one of a number at every call."""

_as_a_whole, _alike, _brief = True, False, False


@contextmanager
def module_by_module() -> Iterator[None]:
    """Has networks computed module by module meanwhile, and without CUDA graphs: the simple way, to compare with.

    In all threads, as `alike`.
    """
    global _as_a_whole
    before, _as_a_whole = _as_a_whole, False
    try:
        yield
    finally:
        _as_a_whole = before


@contextmanager
def alike() -> Iterator[None]:
    """Has all rows rounded alike meanwhile: PyTorch's `exp2` takes another routine for the last few numbers.

    Environments are the first dimension of a batch [N, S, ...] of S rows each.
    """
    global _alike
    before, _alike = _alike, True
    try:
        yield
    finally:
        _alike = before


@contextmanager
def brief() -> Iterator[None]:
    """Has large products multiply bfloat16 meanwhile, where the processor has units for it; all else is float32.

    Factors are rounded to 8 bits of mantissa, and added up in float32: a result is off by some 3e-3 of itself. That
    is for plans, which compare hundreds of random sequences; what learns and what scores units asks for no less
    than float32. In all threads, as `alike`.
    """
    global _brief
    before, _brief = _brief, True
    try:
        yield
    finally:
        _brief = before


def as_a_whole() -> bool:
    """Whether things are computed in the quick way where there is one."""
    return _as_a_whole


class Layer(NamedTuple):
    """A linear layer, and what follows it: LayerNorm and Tanh, or ELU, or nothing."""

    linear: nn.Linear
    norm: nn.LayerNorm | None
    elu: bool

    def parameters(self) -> list[Tensor]:
        """Weights and biases, as they are now."""
        modules = (self.linear,) if self.norm is None else (self.linear, self.norm)
        # Not by attribute: that takes as long as a small product.
        return [p for module in modules for p in module._parameters.values() if p is not None]


class MLP(nn.Sequential):
    """Linear layers with ELU, or LayerNorm and Tanh, between them; inputs [..., in], outputs [..., out].

    Computed as a whole where that is quicker: not on a GPU, not in float64, not for export, not where other
    modules were put into it, and not while somebody listens to a module by a forward hook.
    """

    _known: tuple[tuple[nn.Module | None, ...], list[Layer] | None] = (), None

    def forward(self, x: Tensor) -> Tensor:
        """Outputs [..., out] of inputs [..., in]."""
        layers = self._layers() if _as_a_whole and x.dtype == torch.float32 and x.is_cpu else None
        if torch.compiler.is_exporting() and x.dim() > 2:
            # As a matrix: ONNX Runtime would make one at every layer, and shape its result back.
            return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
        if layers is None or torch.compiler.is_compiling():
            return super().forward(x)
        *batch, inputs = x.shape
        total = math.prod(batch)
        # Environments come first in a shape: how to multiply must not depend on how many there are.
        rows = (batch[-1] if batch else 1) if _alike else total
        if not _alike or total >= FEWEST_ROWS:
            return _run(x, layers, rows)
        filled = F.pad(x.reshape(total, inputs), (0, 0, 0, FEWEST_ROWS - total))
        return _run(filled, layers, rows)[:total].view(*batch, -1)

    def _layers(self) -> list[Layer] | None:
        """What it consists of, or None if that cannot be computed as a whole."""
        modules = tuple(self._modules.values())
        if self._known[0] != modules:
            self._known = modules, _parse(modules)
        heard = any(module._forward_hooks or module._forward_pre_hooks for module in modules)
        return None if heard else self._known[1]


def _parse(modules: Sequence[nn.Module | None]) -> list[Layer] | None:
    """Layers that consist of these modules, or None if there are others among them."""
    layers: list[Layer] = []
    rest = list(modules)
    while rest:
        linear, norm, elu = rest.pop(0), None, False
        if [type(module) for module in rest[:2]] == [nn.LayerNorm, nn.Tanh]:
            norm, _ = rest.pop(0), rest.pop(0)
            if None in (norm._parameters["weight"], norm._parameters["bias"]):  # type: ignore[union-attr]
                return None
        elif rest:
            other = rest.pop(0)
            elu = type(other) is nn.ELU and other.alpha == 1
            if not elu:
                return None
        if type(linear) is not nn.Linear or linear.bias is None:
            return None
        layers.append(Layer(linear, norm, elu))  # type: ignore[arg-type]
    return layers


def _run(x: Tensor, layers: Sequence[Layer], rows: int) -> Tensor:
    """Outputs [..., out] of inputs [..., in], multiplied as so many rows are."""
    if torch.is_grad_enabled():
        parameters = [p for layer in layers for p in layer.parameters()]
        if x.requires_grad or any(p.requires_grad for p in parameters):
            y = _Network.apply(x.reshape(-1, x.shape[-1]), layers, rows, *parameters)
            return y.view(*x.shape[:-1], y.shape[-1])
    return _forward(x, layers, rows)


def _forward(x: Tensor, layers: Sequence[Layer], rows: int, kept: list[list[Tensor]] | None = None) -> Tensor:
    """Outputs [..., out]; `kept` gets what the backward pass needs, layer by layer."""
    for layer in layers:
        parameters = layer.parameters()
        inputs, x = x, product(x, parameters[0], parameters[1], rows)
        between: list[Tensor] = []
        if layer.elu:
            x = elu_(x)
        elif (norm := layer.norm) is not None:
            scale, shift = parameters[2:]
            y, mean, rstd = torch.native_layer_norm(x, norm.normalized_shape, scale, shift, norm.eps)
            between, x = [x, mean, rstd], tanh_(y)
        if kept is not None:
            kept.append([inputs, x, *between, *parameters])
    return x


class _Network(torch.autograd.Function):
    """All layers at once, with their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layers: Sequence[Layer], rows: int, *_: Tensor) -> Tensor:
        kept: list[list[Tensor]] = []
        y = _forward(x, layers, rows, kept)
        ctx.layers, ctx.counts = layers, [len(tensors) for tensors in kept]
        ctx.save_for_backward(*(tensor for tensors in kept for tensor in tensors))
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tensors, needed = iter(ctx.saved_tensors), iter(ctx.needs_input_grad[3:])
        kept = [list(islice(tensors, count)) for count in ctx.counts]
        wanted = [list(islice(needed, len(layer.parameters()))) for layer in ctx.layers]
        gradients: list[Tensor | None] = []
        for i in reversed(range(len(kept))):
            layer, (inputs, y, *rest) = ctx.layers[i], kept[i]
            of_norm: list[Tensor | None] = []
            if layer.norm is not None:
                h, mean, rstd, weight, _, scale, shift = rest
                gradient = torch.ops.aten.tanh_backward(gradient, y)
                gradient, *of_norm = torch.ops.aten.native_layer_norm_backward(
                    gradient, h, layer.norm.normalized_shape, mean, rstd, scale, shift, [True, *wanted[i][2:]]
                )
            else:
                weight = rest[0]
                if layer.elu:
                    gradient = torch.ops.aten.elu_backward(gradient, 1, 1, 1, True, y)
            gradients[:0] = [
                _gradient_product(gradient.t(), inputs.t()) if wanted[i][0] else None,
                gradient.sum(0) if wanted[i][1] else None,
                *of_norm,
            ]
            if i > 0 or ctx.needs_input_grad[0]:
                gradient = _gradient_product(gradient, weight.t())
        return gradient if ctx.needs_input_grad[0] else None, None, None, *gradients


def product(x: Tensor, weight: Tensor, bias: Tensor, rows: int) -> Tensor:
    """x [..., in] times weight [out, in] transposed, plus bias [out]: [..., out]; by what is quick for so many rows."""
    outputs, inputs = weight.shape
    if _brief and BFLOAT16 and inputs >= BRIEF_INPUTS and rows * weight.numel() >= BRIEF:
        return _bfloat16(x, weight, bias)
    few = _alike and (outputs == 1 or (outputs < FEWEST_OUTPUTS and inputs % 4 != 0))
    if ONEDNN and (few or (rows * weight.numel() >= LARGE and not MKL_IS_QUICK)):
        return _onednn(x, weight, bias)
    if few:
        more = FEWEST_OUTPUTS - outputs
        return F.linear(x, F.pad(weight, (0, 0, 0, more)), F.pad(bias, (0, more)))[..., :outputs]
    return F.linear(x, weight, bias)


def _gradient_product(x: Tensor, weight: Tensor) -> Tensor:
    """The same without a bias, in whichever way is quicker."""
    large = x.shape[0] * weight.numel() >= LARGE
    return _onednn(x, weight, None) if ONEDNN and large and not MKL_IS_QUICK else x @ weight.t()


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")


def _bfloat16(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
    try:
        return _onednn(x, weight, bias)
    finally:
        matmul.fp32_precision = before


def elu_(x: Tensor) -> Tensor:
    """ELU, in place."""
    if x.numel() < FEW and not _alike:
        return F.elu_(x)
    y = _exp_(x.clamp(max=0)).sub_(ONE)
    return torch.maximum(x, y, out=x)  # exp(x) - 1 >= x


def tanh_(x: Tensor) -> Tensor:
    """Tanh, in place: 1 - 2 / (exp(2 x) + 1)."""
    if MKL_IS_QUICK:
        return x.tanh_()
    return torch.sub(ONE, _exp_(x.mul_(TWO)).add_(ONE).reciprocal_().mul_(TWO), out=x)


def _exp_(x: Tensor) -> Tensor:
    # The last numbers of a thread's part are too few for exp2's vectors, and rounded otherwise: but for such widths.
    no_rest = x.shape[-1] % 64 == 0 and torch.get_num_threads() <= 2
    by_exp2 = (no_rest or not _alike) and not MKL_IS_QUICK
    return x.mul_(LOG2_E).exp2_() if by_exp2 else x.exp_()
