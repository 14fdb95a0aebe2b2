"""Figures 2 and 3: what they measure, on the shipped prior, small."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from hash3d_cuda.prior import load_prior
from hash3d_cuda.reproduce import figure2, figure3
from hash3d_cuda.reproduce.base import Context
from hash3d_cuda.reproduce.features import add_noise, cached_features

OFFSETS = {
    "azimuths": [40.0], "timesteps": [500], "elevation": [-10, 0, 10], "azimuth": [-10, 0, 10], "far": [90],
    "later": [20, 200],
}  # fmt: skip


@pytest.fixture(scope="module")
def prior():
    return load_prior()


@pytest.fixture
def context(tmp_path) -> Context:
    return Context(tmp_path, quick=True, objects=("horse",), steps=3)


@pytest.fixture(scope="module")
def similar() -> dict:
    """Figure 2's result for one object, as it comes back from its file."""
    context = Context(Path("unused"), quick=True, objects=("horse",), steps=3)
    return json.loads(json.dumps(figure2.measure(context, "horse", 3, OFFSETS)))


def by_offset(entries: list[dict], noise: str) -> dict:
    return {str(entry["offset"]): entry for entry in entries if entry["noise"] == noise}


def test_features_are_those_that_the_cache_keeps(prior):
    """Against the hook's own table after one full forward."""
    import hash3d_cuda as h3d

    subject, pose = prior.resolve("horse"), (20.0, 40.0, 2.0)
    noisy = torch.randn(1, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    found = cached_features(prior, subject, [pose], noisy, 500)
    options = dict(eta=0.0, position=2, groups=2, capacity=2, feature_dtype=torch.float32)
    told = dict(zip(("elevation", "azimuth", "radius"), ([value] for value in pose), strict=True))
    cache = h3d.apply_hash3d(prior.unet, h3d.Hash3DConfig(**options))
    try:
        with torch.no_grad(), cache.views(**told, timestep=500):
            prior.unet(torch.cat([noisy] * 2), torch.tensor([500, 500]), **prior.conditioning(subject, **told))
        kept = cache.table.query(h3d.make_keys(*told.values(), [500]), noisy).features
    finally:
        cache.remove()
    torch.testing.assert_close(found, kept.flatten(1), atol=1e-5, rtol=1e-4)


def test_noise_is_shared_or_each_views_own(prior):
    latents = torch.zeros(3, *prior.latent_shape)
    shared, own = (add_noise(prior, latents, 400, 1, shared) for shared in (True, False))
    assert (shared[0] == shared[1]).all() and (own[0] != own[1]).any()
    deviation = math.sqrt(1 - float(prior.alphas_cumprod[400]))
    assert own.std().item() == pytest.approx(deviation, rel=0.02)


def test_similarity_falls_with_distance_and_with_other_noise(similar):
    same, own = by_offset(similar["pose"], "same"), by_offset(similar["pose"], "own")
    here = same["[0.0, 0.0]"]
    assert here["raw"] == pytest.approx(1, abs=1e-4) and here["centred"] == pytest.approx(1, abs=1e-4)
    assert all(same[key]["centred"] < 1 for key in same if key != "[0.0, 0.0]")
    assert all(own[key]["raw"] < same[key]["raw"] for key in own)
    later = by_offset(similar["time"], "same")
    assert 1 > later["20"]["raw"] > later["200"]["raw"]
    assert similar["others"][0]["centred"] < same["[0.0, 90.0]"]["centred"]


def test_figure_2_sums_up_and_draws(context, similar, tmp_path):
    summary = json.loads(json.dumps(figure2.summarise(context, {"horse": similar, "sofa": similar})))
    least = summary["within_10"]
    assert least["same noise, raw"] == min(
        entry["raw"] for entry in similar["pose"]
        if entry["noise"] == "same" and entry["offset"] not in ([0.0, 0.0], [0.0, 90.0])
    )  # fmt: skip
    assert f"{least['same noise, raw']:.3f}" in summary["findings"][0]
    assert [row["along"] for row in summary["rows"]] == ["azimuth"] * 4 + ["elevation"] * 2 + ["timestep"] * 2 + [
        "another object"
    ]
    figure2.plot(summary, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


def test_free_views_are_averaged_latents(prior):
    """DDIM is linear: the blend of predictions leads to the mean of the two views' latents, from one noise."""
    subject = prior.resolve("horse")
    start = torch.randn(1, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    poses = [(20.0, azimuth, 2.0) for azimuth in (0.0, 40.0)]
    latents, predictions = figure3.generate(prior, subject, poses, start, 4)
    assert torch.allclose(figure3.replay(prior, start, [p[:1] for p in predictions]), latents[:1], atol=1e-5)
    free = figure3.replay(prior, start, [p.mean(0, keepdim=True) for p in predictions])
    torch.testing.assert_close(free, latents.mean(0, keepdim=True), atol=1e-4, rtol=1e-4)
    assert (latents[0] - latents[1]).abs().max() > 0.1


def test_generated_views_show_the_object(prior):
    """So that figure 3 compares pictures and not noise."""
    from hash3d_cuda.prior.ground_truth import ground_truth_views
    from hash3d_cuda.sds.metrics import image_quality

    start = torch.randn(1, *prior.latent_shape, generator=torch.Generator().manual_seed(0))
    latents, _ = figure3.generate(prior, prior.resolve("horse"), [(30.0, 45.0, 2.0)], start, 8)
    image, truth = figure3.decoded(prior, latents), ground_truth_views("horse")[0]
    scores = [image_quality(image, view[None])["psnr"] for view in truth]
    assert max(range(16), key=scores.__getitem__) == 2 and scores[2] > 18


def test_figure_3_gets_worse_with_delta(context, tmp_path, monkeypatch):
    monkeypatch.setattr(figure3, "DELTAS", (1, 5, 20))
    found = json.loads(json.dumps(figure3.measure(context, "horse", [10.0], 4)))
    psnr = [score["psnr"] for score in found["scores"]]
    assert psnr[0] > psnr[1] > psnr[2] and all(s["psnr"] > s["neighbour_psnr"] for s in found["scores"])
    summary = json.loads(json.dumps(figure3.summarise(context, {"horse": found})))
    assert summary["rows"][1]["PSNR, dB"] == psnr[1] and f"{psnr[1]:.2f} dB" in summary["findings"][0]
    figure3.plot(summary, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.parametrize("module", [figure2, figure3])
def test_units_are_one_per_object_and_smaller_when_quick(module, tmp_path):
    quick, full = (Context(tmp_path, quick, ("horse", "sofa"), steps=5) for quick in (True, False))
    assert [unit.key for unit in module.units(quick)] == ["horse", "sofa"]
    assert module.units(quick)[0].weight < module.units(full)[0].weight
    assert module.units(quick)[0].file_name(quick) != module.units(full)[0].file_name(full)
