"""What of CUDA graphs needs no GPU; the rest is in tests/gpu."""

import contextlib

import torch

from agents.cuda_graphs import tf32


def test_tf32_ends_where_it_began():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    assert before != "tf32"  # what learns is computed in float32
    inside = []
    with contextlib.suppress(ZeroDivisionError), tf32():
        inside.append(matmul.fp32_precision)
        inside.append(1 / 0)
    assert inside == ["tf32"]
    assert matmul.fp32_precision == before
