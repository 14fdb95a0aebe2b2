"""The gradient of score distillation, against its textbook form."""

from __future__ import annotations

import pytest
import torch
from sds_stand_ins import TinyPrior
from torch.utils._python_dispatch import TorchDispatchMode

from hash3d_cuda.sds.guidance import Guidance, predicted_clean, step_weight
from hash3d_cuda.sds.sampler import StepViews

VIEWS = StepViews([10.0, 20.0, 0.0], [0.0, 100.0, 300.0], [2.0, 1.9, 2.1], [100, 500, 900])


def noised(seed=0):
    generator = torch.Generator().manual_seed(seed)
    clean, noise = (torch.randn(3, 48, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    abar = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)[:, None, None, None]
    return clean, noise, abar, abar.sqrt() * clean + (1 - abar).sqrt() * noise


def test_every_prediction_type_gives_the_clean_latent():
    clean, noise, abar, noisy = noised()
    outputs = {
        "sample": clean,
        "epsilon": noise,
        "v_prediction": abar.sqrt() * noise - (1 - abar).sqrt() * clean,
    }
    for kind, output in outputs.items():
        torch.testing.assert_close(predicted_clean(kind, output, noisy, abar), clean)
    with pytest.raises(ValueError, match="prediction_type"):
        predicted_clean("score", clean, noisy, abar)


@pytest.mark.parametrize("weighting, w", [("dreamfusion", lambda abar: 1 - abar), ("uniform", lambda abar: 1.0)])
def test_the_weights_restate_the_noise_residual(weighting, w):
    clean, noise, abar, noisy = noised()
    noise_hat = noise + 0.3 * torch.randn(noise.shape, dtype=noise.dtype, generator=torch.Generator().manual_seed(9))
    clean_hat = predicted_clean("epsilon", noise_hat, noisy, abar)
    for item, level in enumerate(abar.flatten().tolist()):
        textbook = w(level) * (noise_hat - noise)[item]
        torch.testing.assert_close(step_weight(weighting, level) * (clean - clean_hat)[item], textbook)


def test_loss_gradient_is_the_weighted_difference():
    prior = TinyPrior()
    guidance = Guidance(prior, prior.resolve("cube"), None, 2.0, "dreamfusion")
    latents = torch.randn(3, *prior.latent_shape, requires_grad=True)
    target = torch.randn(3, *prior.latent_shape)
    guidance.loss(latents, target, VIEWS).backward()
    weights = torch.tensor([step_weight("dreamfusion", guidance.abar[t]) for t in VIEWS.timestep])
    expected = 2 * weights[:, None, None, None] * (latents.detach() - target) / latents.numel()
    torch.testing.assert_close(latents.grad, expected)


def target_of(prior, scale, seed=1):
    latents = torch.randn(3, *prior.latent_shape, generator=torch.Generator().manual_seed(5))
    guidance = Guidance(prior, prior.resolve("ball"), None, scale, "x0")
    return guidance.target(latents, VIEWS, torch.Generator().manual_seed(seed)), latents


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
def test_guidance_scale_moves_along_the_line_from_plain_to_conditioned(kind):
    prior = TinyPrior(kind)
    plain, conditioned, beyond = (target_of(prior, scale)[0] for scale in (0.0, 1.0, 3.0))
    assert (plain - conditioned).abs().max() > 1e-4
    torch.testing.assert_close(beyond, plain + 3 * (conditioned - plain), rtol=1e-3, atol=1e-3)


def test_target_is_the_unets_own_prediction_and_follows_the_seed():
    prior = TinyPrior()
    target, latents = target_of(prior, 1.0)
    generator = torch.Generator().manual_seed(1)
    abar = prior.alphas_cumprod[VIEWS.timestep][:, None, None, None]
    noisy = abar.sqrt() * latents + (1 - abar).sqrt() * torch.randn(latents.shape, generator=generator)
    condition = prior.conditioning(prior.resolve("ball"), VIEWS.elevation, VIEWS.azimuth, VIEWS.radius)
    tokens = condition["encoder_hidden_states"][:3]
    with torch.no_grad():
        own = prior.unet(noisy, torch.tensor(VIEWS.timestep), encoder_hidden_states=tokens).sample
    torch.testing.assert_close(target, own, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(target, target_of(prior, 1.0)[0], rtol=0, atol=0)
    assert not torch.equal(target, target_of(prior, 1.0, seed=2)[0])


class NoHostReads(TorchDispatchMode):
    """Raises on every operation that would make the host wait for a device's numbers."""

    FORBIDDEN = frozenset({"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique2"})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in self.FORBIDDEN:
            raise AssertionError(f"{func} reads device values on the host")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", ["sample", "epsilon", "v_prediction"])
def test_nothing_waits_for_the_device(kind):
    prior = TinyPrior(kind)
    guidance = Guidance(prior, prior.resolve("cube"), None, 2.0, "dreamfusion")
    images = torch.rand(3, 3, 16, 16, requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    with NoHostReads():
        latents = prior.encode(images)
        guidance.loss(latents, guidance.target(latents, VIEWS, generator), VIEWS).backward()
    assert images.grad.isfinite().all()
    with pytest.raises(AssertionError, match="reads device values"), NoHostReads():
        float(images.detach().sum())
