"""The experiments on stale features: what they compare, and what they make of it."""

from __future__ import annotations

import math

import pytest
import torch
from sds_stand_ins import TinyPrior

from hash3d_cuda.prior.ground_truth import ground_truth_names
from hash3d_cuda.reproduce import ageing, frontier, mismatch
from hash3d_cuda.reproduce.base import Context, experiment_units
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.settings import GenerateSettings

NAME = ground_truth_names()[0]


def tiny_prior():
    return TinyPrior(size=64, vocabulary=ground_truth_names())


def context(folder, steps=4):
    return Context(folder, True, (NAME,), steps, 0, tiny_prior)


def results(module, where):
    return {unit.key: unit.run(where) for unit in experiment_units(module, where)}


def test_ageing_compares_every_pair_of_probes(tmp_path, monkeypatch):
    monkeypatch.setattr(ageing, "PROBES", 4)
    where = context(tmp_path)
    found = results(ageing, where)
    pairs = found[f"ageing, {NAME}"]["pairs"]
    assert sorted(one["age"] for one in pairs) == [0] * 4 + [1] * 3 + [2] * 2 + [3]
    assert all(0 < one["feature"] < 3 and 0 <= one["shallow"] < 3 and -1 <= one["cosine"] <= 1.001 for one in pairs)
    summary = ageing.summarise(where, found)
    assert [row["age, steps"] for row in summary["rows"]] == [0, 1, 2, 3] and len(summary["findings"]) == 2
    ageing.plot(summary, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 1000


def test_an_entry_without_age_is_the_same():
    prior = tiny_prior()
    with SdsRun(prior, prior.resolve(NAME), GenerateSettings(steps=4, scene_size=8, cache=False)) as run:
        one, two = ageing.probe(run, 3), ageing.probe(run, 3)
        other = ageing.probe(run, 4)
    same = ageing.pair(0, 0.0, one, two)
    assert same["feature"] == 0 and same["shallow"] == 0 and same["cosine"] == pytest.approx(1, abs=1e-5)
    assert ageing.pair(0, 0.0, one, other)["feature"] > 0


def test_correlation():
    pairs = [{"shallow": x, "feature": 2 * x + 1} for x in (0.1, 0.4, 0.2)]
    assert ageing.correlation(pairs) == pytest.approx(1)
    assert math.isnan(ageing.correlation(pairs[:1] * 3))


def test_mismatch_with_nothing_different_changes_nothing(tmp_path, monkeypatch):
    kept = {name: mismatch.DIFFERENCES[name] for name in ("noise", "azimuth 4", "timestep 150")}
    monkeypatch.setattr(mismatch, "DIFFERENCES", {**kept, "nothing": (0, 0, 0, 0, False)})
    where = context(tmp_path)
    found = results(mismatch, where)
    summary = mismatch.summarise(where, found)
    by_name = {row["differs"]: row for row in summary["rows"]}
    assert by_name["nothing"]["error"] == 0 and by_name["nothing"]["apart, t 600"] == 0
    assert all(by_name[name]["apart, t 600"] > 0 for name in ("noise", "azimuth 4", "timestep 150"))
    assert "timestep 150" in summary["findings"][0]
    mismatch.plot(summary, tmp_path / "m.png")
    assert (tmp_path / "m.png").stat().st_size > 1000


def test_own_feature_gives_the_models_own_answer():
    prior = tiny_prior()
    subject, truth = prior.resolve(NAME), torch.rand(2, *prior.latent_shape)
    at = [[30.0, 30.0], [0.0, 90.0], [2.0, 2.0]]
    answer = mismatch.Answer(prior, subject, truth, at, 600, 1)
    sample = prior.model_input(answer.noisy, subject)
    with torch.no_grad():
        full = prior.unet(sample, torch.full((4,), 600), **prior.conditioning(subject, *at)).sample
    conditioned, plain = full.chunk(2)
    torch.testing.assert_close(answer.clean(answer.feature), plain + 2.0 * (conditioned - plain))


@pytest.mark.parametrize("change, verdict", [(-0.1, "better): met"), (-0.3, "better): not met")])
def test_the_verdict_follows_the_figures(change, verdict):
    base = {"x": 0.0, "speed_up": 1.0, "bound_step": 1.0, "unet_speed_up": 1.0, "bound_unet": 1.0,
            "unet_share_of_step": 0.4, "quality": {"psnr": 26.0, "ssim": 0.9}}  # fmt: skip
    ours = {**base, "x": 0.85, "speed_up": 1.3, "quality": {"psnr": 26.0 + change, "ssim": 0.899}}
    said = frontier.accepted({NAME: {"runs": {"none": base, frontier.OURS[2]: ours}}}, frontier.OURS[2], "position 2")
    assert f"PSNR {change:+.2f} dB (wanted -0.2 or {verdict}" in said
    assert "x = 0.850 (wanted 0.85): met" in said and "as fast (wanted 2.5; bound 1.00" in said
    assert "is 40%" in said or "at 40%" in said


def test_what_a_target_of_quality_held_is_told():
    from hash3d_cuda.reproduce import gates, studies

    run = studies.run_of(gates.QUALITY, gates.TRIED)
    told = {"mean_error": 0.1, "eta": 0.7, "target_quality": 0.95}
    found = {"cactus": {"runs": {run: {"x": 0.5, "control": [told]}}}}
    assert "makes 0.050 over all views (0.050 allowed); eta ended at 0.70" in gates.held(found)
    for nothing in (None, [{**told, "mean_error": None}]):
        found["cactus"]["runs"][run]["control"] = nothing
        assert "no audit found anything" in gates.held(found)


def test_eight_bits_are_compared_object_by_object():
    whole = {"quality": {"psnr": 26.0}, "slots_bytes": 1000}
    runs = {
        name: {"runs": {frontier.OURS[3]: whole, "anchored-85-int8": {"quality": {"psnr": psnr}, "slots_bytes": 260}}}
        for name, psnr in (("a", 25.99), ("b", 26.03))
    }
    said = frontier.eight_bits(runs)
    assert "PSNR +0.010 dB, from -0.010 to +0.030 by object" in said and "0.260 of the bytes" in said
