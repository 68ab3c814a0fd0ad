"""Networks computed as a whole, against the same networks computed module by module."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from agents import layers
from agents.layers import MLP, alike, brief, elu_, module_by_module, tanh_
from agents.networks import mlp

NETWORKS = {
    "plain": ([33, 128, 128, 32], False),
    "normalised": ([33, 57, 128, 1], True),
    "small": ([5, 29, 7], False),
    "single": ([3, 16, 1], False),
    "wide": ([52, 512, 512, 50], False),
}


WAYS = {"onednn": (True, False), "mkl": (True, True), "mkl alone": (False, True), "neither": (False, False)}
"""Whether oneDNN is there, and whether MKL is quick, as on Intel's processors."""


@pytest.fixture(params=WAYS)
def way(request, monkeypatch):
    there, quick = WAYS[request.param]
    monkeypatch.setattr(layers, "ONEDNN", there and layers.ONEDNN)
    monkeypatch.setattr(layers, "MKL_IS_QUICK", quick)


def network(name: str) -> MLP:
    sizes, normalise_first = NETWORKS[name]
    torch.manual_seed(1)
    net = mlp(sizes, normalise_first=normalise_first)
    for parameter in net.parameters():
        if parameter.dim() == 1:
            nn.init.normal_(parameter, std=0.3)
    return net


def gradients(net: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> list[torch.Tensor | None]:
    inputs = x.clone().requires_grad_()
    net.zero_grad(set_to_none=True)
    (net(inputs) * weight).sum().backward()
    return [inputs.grad, *(p.grad for p in net.parameters())]


@pytest.mark.parametrize("rows", [(1,), (2,), (15,), (300,), (5, 256), (2500,), (2, 3, 4)])
@pytest.mark.parametrize("name", NETWORKS)
def test_same_as_module_by_module(name, rows, way, monkeypatch):
    net = network(name)
    x = torch.randn(*rows, net[0].in_features)
    weight = torch.randn(*rows, net[-1].out_features)
    passes: list[int] = []
    forward = layers._forward
    monkeypatch.setattr(layers, "_forward", lambda x, *rest: passes.append(len(x)) or forward(x, *rest))
    found, output = gradients(net, x, weight), net(x)
    whole = len(passes)
    with module_by_module():
        expected, simple = gradients(net, x, weight), net(x)
    assert len(passes) == whole > 0
    np.testing.assert_allclose(output.detach(), simple.detach(), atol=3e-6, rtol=0)
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= 1e-5 * other.norm()
    with torch.no_grad():
        assert torch.equal(net(x), output)


def test_gradients_by_finite_differences(monkeypatch):
    """In float64, which only tests compute in this way."""
    monkeypatch.setattr(layers, "ONEDNN", False)
    for name in ("small", "normalised"):
        net = network(name).double()
        inputs = torch.randn(6, net[0].in_features, dtype=torch.float64, requires_grad=True)
        parsed = net._layers()

        def run(x, *_, parsed=parsed):
            return layers._run(x, parsed, len(x))

        assert torch.autograd.gradcheck(run, (inputs, *net.parameters()), atol=1e-6)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_environment_does_not_feel_the_others(name, threads, way):
    """Inputs are of shape [environments, candidates, in], or [environments, 1, in]."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        net = network(name).requires_grad_(False)
        for candidates in (1, 6, 134, 501):
            x = torch.randn(17, candidates, net[0].in_features)
            with alike():
                together = net(x)
                for count in (1, 2, 3, 16):
                    assert torch.equal(net(x[:count]), together[:count]), (candidates, count)
                for one in range(17):  # at another address than among the others
                    assert torch.equal(net(x[one : one + 1].clone()), together[one : one + 1]), (
                        candidates,
                        one,
                    )
            np.testing.assert_allclose(net(x), together, atol=3e-6)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("outputs", [1, 2, 3, 6, 11, 12, 17])
def test_products_do_not_feel_where_a_row_lies(outputs, way):
    """MKL rounds rows of odd lengths by their address where there are few outputs: widths that pruning leaves."""
    torch.manual_seed(2)
    for inputs in (5, 9, 13, 16, 33, 57, 97, 128):
        weight, bias = torch.randn(outputs, inputs), torch.randn(outputs)
        for candidates in (16, 33, 134):
            x = torch.randn(5, candidates, inputs)
            with alike():
                together = layers.product(x, weight, bias, candidates)
                alone = [layers.product(one.clone(), weight, bias, candidates) for one in x.split(1)]
            assert torch.equal(torch.cat(alone), together), (inputs, candidates)
            torch.testing.assert_close(together, nn.functional.linear(x, weight, bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("info", "said", "found"),
    [
        ("vendor_id\t: GenuineIntel\nflags\t: fpu amx_bf16\n", "", (True, True)),
        ("vendor_id\t: AuthenticAMD\nflags\t: fpu avx512_bf16\n", "", (False, False)),
        (None, "Intel64 Family 6 Model 142 Stepping 12, GenuineIntel", (True, False)),  # as Windows has it
        (None, "arm", (False, False)),
    ],
)
def test_what_is_known_of_the_processor(info, said, found, tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    if info:
        file.write_text(info)
    monkeypatch.setattr(layers, "Path", lambda path: file)
    monkeypatch.setattr("platform.processor", lambda: said)
    assert tuple(word in layers._processor() for word in ("GenuineIntel", "amx_bf16")) == found


@pytest.fixture
def counted(monkeypatch):
    """Shapes of the products of bfloat16; on any processor, since oneDNN does what it can."""
    shapes = []
    bfloat16 = layers._bfloat16
    monkeypatch.setattr(layers, "BFLOAT16", layers.ONEDNN)
    monkeypatch.setattr(
        layers, "_bfloat16", lambda x, weight, bias: shapes.append(weight.shape) or bfloat16(x, weight, bias)
    )
    return shapes


@pytest.mark.skipif(not layers.ONEDNN, reason="PyTorch was built without oneDNN")
def test_large_products_of_bfloat16(counted):
    matmul = torch.backends.mkldnn.matmul
    before = matmul.fp32_precision
    net = network("wide").requires_grad_(False)
    x = torch.randn(536, 52)
    exact = net(x)
    assert not counted  # nobody has asked for it
    with brief():
        found = net(x)
        net(x[:20])
        assert matmul.fp32_precision == before
    assert counted == [(512, 512), (50, 512)]  # 52 inputs are too few, 20 rows as well
    assert (found - exact).norm() <= 5e-3 * exact.norm()
    assert torch.equal(net(x), exact)
    with pytest.raises(RuntimeError), brief():
        layers.product(x, torch.randn(512, 512), torch.randn(512), 536)
    assert matmul.fp32_precision == before
    assert not layers._brief


@pytest.mark.skipif(not layers.BFLOAT16, reason="this processor has no units for bfloat16")
@pytest.mark.parametrize("threads", [1, 2])
def test_products_of_bfloat16(counted, threads):
    """They are what is said of them; and an environment does not feel the others."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for inputs, outputs in ((512, 512), (512, 50), (160, 161), (161, 160)):
            x, weight, bias = (
                torch.randn(7, 536, inputs),
                torch.randn(outputs, inputs),
                torch.randn(outputs),
            )
            with brief(), alike():
                together = layers.product(x, weight, bias, 536)
                alone = [layers.product(one.clone(), weight, bias, 536) for one in x.split(1)]
            assert torch.equal(torch.cat(alone), together)
            rounded = nn.functional.linear(
                x.bfloat16().double(), weight.bfloat16().double(), bias.double()
            ).float()
            torch.testing.assert_close(together, rounded, atol=1e-4, rtol=1e-5)
        assert len(counted) == 4 * 8
    finally:
        torch.set_num_threads(before)


def test_frozen_parameters_get_no_gradient():
    net = network("normalised")
    x = torch.randn(20, 33, requires_grad=True)
    net.requires_grad_(False)
    net[3].weight.requires_grad_(True)
    net(x).sum().backward()
    assert [p.grad is not None for p in net.parameters()] == [p.requires_grad for p in net.parameters()]
    found = x.grad.clone(), net[3].weight.grad.clone()
    x.grad = net[3].weight.grad = None
    with module_by_module():
        net(x).sum().backward()
    for one, other in zip(found, (x.grad, net[3].weight.grad), strict=True):
        assert (one - other).norm() <= 3e-6 * other.norm()
    net.requires_grad_(False)
    assert not net(x.detach()).requires_grad


def test_a_hook_hears_its_module():
    net = network("plain")
    heard = []
    hook = net[2].register_forward_hook(lambda *args: heard.append(args))
    net(torch.randn(3, 33))
    assert len(heard) == 1
    hook.remove()
    net(torch.randn(3, 33))
    assert len(heard) == 1


def test_other_modules_are_called():
    net = network("plain")
    net(torch.randn(3, 33))
    net[1] = nn.ReLU()
    x = torch.randn(3, 33)
    expected = net[4](nn.functional.elu(net[2](net[0](x).relu())))
    np.testing.assert_allclose(net(x).detach(), expected.detach(), atol=1e-6)
    for others in (
        (nn.ELU(), nn.Linear(33, 2)),
        (nn.Linear(33, 2), nn.LayerNorm(2)),
        (nn.Linear(33, 2, bias=False),),
        (nn.Linear(33, 2), nn.ELU(alpha=0.3)),
        (nn.Linear(33, 2), nn.LayerNorm(2, bias=False), nn.Tanh()),
        (nn.Linear(33, 2), nn.LayerNorm(2, elementwise_affine=False), nn.Tanh()),
    ):
        assert MLP(*others)._layers() is None
        assert torch.equal(MLP(*others)(x), nn.Sequential(*others)(x))


def test_a_copy_is_a_network_of_its_own():
    net = network("plain")
    x = torch.randn(3, 33)
    before = net(x).detach()
    other = copy.deepcopy(net)
    with torch.no_grad():
        net[0].weight.zero_()
        assert torch.equal(other(x), before)
        assert not torch.equal(net(x), before)


def test_elu_and_tanh(way):
    x = torch.cat([torch.linspace(-200, 200, 10_001), torch.tensor([0.0, torch.inf, -torch.inf])])
    np.testing.assert_allclose(elu_(x.clone()), nn.functional.elu(x), atol=2e-7, rtol=1e-7)
    np.testing.assert_allclose(tanh_(x.clone()), torch.tanh(x), atol=2e-7, rtol=0)
    with alike():
        np.testing.assert_allclose(elu_(x.clone()), nn.functional.elu(x), atol=2e-7, rtol=1e-7)
        np.testing.assert_allclose(tanh_(x.clone()), torch.tanh(x), atol=2e-7, rtol=0)
    for function in (elu_, tanh_):
        assert function(torch.tensor([torch.nan, 1.0])).isnan().tolist() == [True, False]


def test_not_a_number_goes_through():
    net = network("normalised").requires_grad_(False)
    x = torch.randn(40, 33)
    x[7, 3] = torch.nan
    assert net(x).isnan().squeeze(1).nonzero().tolist() == [[7]]
