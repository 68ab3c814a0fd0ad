"""What of CUDA graphs needs no GPU; the rest is in tests/gpu."""

import pytest
import torch

from agents.cuda_graphs import tf32


def test_tf32_ends_where_it_began():
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    assert before != "tf32"  # what learns is computed in float32
    with pytest.raises(ZeroDivisionError), tf32():
        assert matmul.fp32_precision == "tf32"
        raise ZeroDivisionError
    assert matmul.fp32_precision == before
