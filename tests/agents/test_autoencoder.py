"""The autoencoder: its losses and gradients, what pruning sees of it, and that it learns."""

import pytest
import torch

from agents.autoencoder import Autoencoder
from agents.autoencoder_config import AutoencoderConfig
from tdmpc_prune.pruning.groups import find_groups
from tdmpc_prune.pruning.surgery import remove_units

SMALL = AutoencoderConfig(hidden_dim=12, code_dim=4, batch_size=8, lr=1e-2)
PIXELS = 9


@pytest.fixture
def agent():
    return Autoencoder(SMALL, PIXELS, seed=3)


def images(count, seed=0):
    return torch.rand(count, PIXELS, generator=torch.Generator().manual_seed(seed))


def test_sizes_mirror_each_other():
    agent = Autoencoder(AutoencoderConfig(), 64)
    assert agent.architecture() == {"encoder": [64, 128, 16], "decoder": [16, 128, 64]}
    assert agent.input_dim == 64


def test_reconstructions_are_between_0_and_1(agent):
    found = agent.reconstruct(100 * images(5) - 50).detach()
    assert found.shape == (5, PIXELS)
    assert 0 <= float(found.min()) <= float(found.max()) <= 1


def test_the_loss_is_the_mean_squared_error_per_pixel(agent):
    batch = images(8)
    first, middle = agent.encoder[0], agent.encoder[2]
    code = torch.nn.functional.elu(batch @ first.weight.T + first.bias) @ middle.weight.T + middle.bias
    first, last = agent.decoder[0], agent.decoder[2]
    out = torch.nn.functional.elu(code @ first.weight.T + first.bias) @ last.weight.T + last.bias
    expected = ((1 / (1 + torch.exp(-out)) - batch) ** 2).sum().item() / (8 * PIXELS)
    assert float(agent.update(batch)["reconstruction_loss"]) == pytest.approx(expected, rel=1e-5)


def test_observed_after_backward_and_before_clipping():
    agent = Autoencoder(AutoencoderConfig(hidden_dim=12, code_dim=4, grad_clip=1e-3), PIXELS)
    seen = []

    def observe(parameters):
        parameters = list(parameters)
        seen.append(torch.cat([p.grad.flatten() for p in parameters]).norm())
        assert len(parameters) == 8

    losses = agent.update(images(8), observe)
    (norm,) = seen
    assert norm > 10 * agent.config.grad_clip
    assert float(losses["grad_norm"]) == pytest.approx(float(norm), rel=1e-5)
    clipped = torch.cat([p.grad.flatten() for c in agent.components().values() for p in c.parameters()])
    assert float(clipped.norm()) == pytest.approx(agent.config.grad_clip, rel=1e-3)


def test_groups(agent):
    groups = {g.name: g for g in find_groups(agent)}
    assert list(groups) == ["encoder.0", "decoder.0", "latent"]
    assert [g.coupling for g in groups.values()] == [False, False, True]
    assert [g.units for g in groups.values()] == [12, 12, 4]
    members = [(m.component, m.layer, m.role) for m in groups["latent"].members]
    assert members == [("encoder", "2", "out"), ("decoder", "0", "in")]
    assert groups["latent"].unit_parameters == 12 + 1 + 12


def test_removed_units_are_gone_and_learning_goes_on(agent):
    for seed in range(3):
        agent.update(images(8, seed))
    removal = {"encoder.0": torch.tensor([0, 5]), "latent": torch.tensor([1])}
    remove_units(agent, find_groups(agent), removal)
    assert agent.architecture() == {"encoder": [PIXELS, 10, 3], "decoder": [3, 12, PIXELS]}
    losses = [float(agent.update(images(8))["reconstruction_loss"]) for _ in range(100)]
    assert losses[-1] < losses[0]
    held = {p for group in agent.optimizer.param_groups for p in group["params"]}
    assert held == {p for c in agent.components().values() for p in c.parameters()}
    assert held == set(agent.optimizer.state)


def test_units_that_nobody_reads_make_no_difference(agent):
    with torch.no_grad():
        agent.decoder[0].weight[:, 2] = 0
    before = agent.reconstruct(images(6))
    remove_units(agent, find_groups(agent), {"latent": torch.tensor([2])})
    torch.testing.assert_close(agent.reconstruct(images(6)), before, atol=1e-6, rtol=0)


def test_a_copy_is_independent(agent):
    agent.update(images(8))
    copy = agent.copy()
    before = agent.reconstruct(images(6))
    assert torch.equal(copy.reconstruct(images(6)), before)
    copy.update(images(8))
    remove_units(copy, find_groups(copy), {"latent": torch.tensor([0])})
    assert torch.equal(agent.reconstruct(images(6)), before)
    assert agent.architecture()["encoder"] == [PIXELS, 12, 4]


def test_the_seed_decides_and_the_global_state_stays():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one, two, other = (Autoencoder(SMALL, PIXELS, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one.reconstruct(images(4)), two.reconstruct(images(4)))
    assert not torch.equal(one.reconstruct(images(4)), other.reconstruct(images(4)))


def test_it_learns_what_a_code_of_its_width_can_hold():
    """Images that three numbers describe come back almost whole; without learning they do not."""
    generator = torch.Generator().manual_seed(1)
    basis = torch.randn(3, PIXELS, generator=generator)
    data = torch.sigmoid(torch.randn(256, 3, generator=generator) @ basis)
    agent = Autoencoder(SMALL, PIXELS)
    losses = [float(agent.update(data)["reconstruction_loss"]) for _ in range(400)]
    assert losses[-1] < 0.02 * float(data.var(0).mean())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"code_dim": 0}, "code_dim is 0"),
        ({"hidden_dim": -1}, "hidden_dim is -1"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"lr": float("nan")}, "lr is nan"),
        ({"grad_clip": float("inf")}, "grad_clip is inf"),
    ],
)
def test_settings_that_cannot_be(settings, said):
    with pytest.raises(ValueError, match=said):
        AutoencoderConfig(**settings)
