"""threestudio's add-on outside the guidance: poses kept on the host, checkpoints, waiting for a GPU, the configuration.

Against stand-ins; a real Lightning trainer takes part where ``HASH3D_THREESTUDIO`` names a checkout.
"""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("diffusers")

from simulated_cuda import CUDA, HostWaits, module_to_gpu, on_gpu, simulated_cuda
from threestudio_cases import ALWAYS, EXAMPLE, SMALL, StandIn, ask, make_batch, make_prompt

UPSTREAM = os.environ.get("HASH3D_THREESTUDIO")


@pytest.fixture(scope="module")
def source():
    return StandIn()


@pytest.fixture
def make_system(source):
    def make(options):
        system = source.threestudio.find("a-system:hash3d-system")()
        system.make_guidance = lambda: source.make("sd", options)
        return system

    return make


def test_poses_are_kept_where_the_batch_is_moved_from(make_system):
    system, batch = make_system(ALWAYS), {"rgb": torch.zeros(2), "random_camera": make_batch(2)}
    told = system.on_before_batch_transfer(batch, 0)
    kept = told["random_camera"]["hash3d_poses"].tensor
    assert kept.tolist() == [[12.0, 5.0, pytest.approx(1.55)], [12.0, 85.0, pytest.approx(1.55)]]
    assert "hash3d_poses" not in told
    system.eval()
    assert "hash3d_poses" not in system.on_before_batch_transfer(make_batch(1), 0)


def test_kept_poses_are_believed(source, make_system):
    """They are those of the batch; here others, so that it shows."""
    system, prompt = make_system(ALWAYS), make_prompt(source)
    system.on_fit_start()
    batch = system.on_before_batch_transfer(make_batch(1), 0)
    batch["hash3d_poses"].tensor[0, 1] = 170.0
    ask(system.guidance, "sd", batch, prompt)
    table = system.guidance.hash3d.cache.table
    assert (table.lookup(torch.tensor([[12.0, 170.0, 1.55, 0.0]])) == -1).all() and len(table) == 1
    ask(system.guidance, "sd", make_batch(1, azimuth=170.0), prompt)
    assert system.guidance.hash3d.cache.stats().hits == 1


def test_a_system_goes_on_from_its_checkpoint(source, make_system, tmp_path):
    options, prompt = {**SMALL, "eta": 0.5}, make_prompt(source)
    one, two = make_system(options), make_system(options)
    one.on_fit_start()
    for step in range(4):
        ask(one.guidance, "sd", make_batch(2), prompt, seed=step % 2)
    checkpoint = {}
    one.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "last.ckpt")
    two.on_load_checkpoint(torch.load(tmp_path / "last.ckpt", weights_only=True))  # before there is a guidance
    two.on_fit_start()
    for step in range(6):
        some, others = (ask(system.guidance, "sd", make_batch(2), prompt, seed=step % 2) for system in (one, two))
        assert torch.equal(some["grad"], others["grad"])
        assert one.guidance.hash3d.cache.last == two.guidance.hash3d.cache.last
    assert one.guidance.hash3d.cache.stats().hits == two.guidance.hash3d.cache.stats().hits > 0


@pytest.mark.parametrize("change", [{"position": 1}, {"checkpoint": False}])
def test_a_state_that_does_not_fit_is_left(source, make_system, change):
    """Other options: a line says so. Or the saving run was told to leave the entries out."""
    saving, prompt, checkpoint = make_system({**ALWAYS, **change}), make_prompt(source), {}
    saving.on_fit_start()
    ask(saving.guidance, "sd", make_batch(1), prompt)
    saving.on_save_checkpoint(checkpoint)
    assert (checkpoint["hash3d"] == {}) == ("checkpoint" in change)
    system, said = make_system(ALWAYS), len(source.said)
    system.on_load_checkpoint(checkpoint)
    system.on_fit_start()
    ask(system.guidance, "sd", make_batch(1), prompt)
    assert system.guidance.hash3d.cache.stats().misses == 1
    assert any("starts with an empty table" in line for line in source.said[said:]) == ("position" in change)


def test_a_guidance_that_is_not_known_is_refused(source):
    with pytest.raises(TypeError, match=r"one of stable-diffusion-guidance.*got 'other-guidance'"):
        source.threestudio.find("other-guidance:hash3d")({"hash3d": {}})


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("drawn", [True, False])
def test_what_is_waited_for(source, kept, drawn):
    """On a simulated GPU: nothing, once poses are kept and timesteps drawn on the host."""
    options = {**ALWAYS, "host_timesteps": drawn}
    prompt = make_prompt(source)
    with simulated_cuda() as gpu:
        guidance = source.make("sd", options, view_dependent_prompting=False)
        module_to_gpu(guidance.unet)
        guidance.device = CUDA
        for name in ("text_embeddings", "uncond_text_embeddings", "text_embeddings_vd", "uncond_text_embeddings_vd"):
            setattr(prompt, name, on_gpu(getattr(prompt, name)))
        guidance.scheduler.alphas_cumprod = on_gpu(guidance.scheduler.alphas_cumprod)
        host = make_batch(2)
        batch = {name: on_gpu(value) for name, value in host.items()}
        if kept:
            batch["hash3d_poses"] = source.addon.parts.poses.keep_poses(host)["hash3d_poses"]

        def step():
            rgb = on_gpu(torch.rand(2, 64, 64, 4))
            return guidance(rgb, prompt, **batch, rgb_as_latents=True)

        output = step()  # the embeddings are read once
        assert output["hash3d_host_syncs"] == (not kept) + (not drawn)
        with gpu.watch():
            if kept and drawn:
                for _ in range(3):
                    output = step()
            else:
                with pytest.raises(HostWaits):
                    step()
        if kept and drawn:
            assert output["hash3d_host_syncs"] == 0.0 and guidance.hash3d.cache.stats().forwards == 4


def test_strict_refuses_poses_on_a_gpu(source):
    guidance = source.make("sd", {**ALWAYS, "strict": True}, view_dependent_prompting=False)
    with simulated_cuda():
        batch = {name: on_gpu(value) for name, value in make_batch(1).items()}
        with pytest.raises(ValueError, match="hash3d-system"):
            guidance(torch.rand(1, 64, 64, 4), make_prompt(source), **batch, rgb_as_latents=True)


def test_the_configuration_has_options_that_are_known(source):
    yaml = pytest.importorskip("yaml")
    told = yaml.safe_load((EXAMPLE / "configs" / "dreamfusion-hash3d.yaml").read_text(encoding="utf-8"))
    options = source.addon.parts.options.parse(told["system"]["guidance"]["hash3d"])
    assert options.host_timesteps and options.cache["memory_budget"] == "8GiB"
    assert told["system_type"].endswith(":hash3d-system") and told["system"]["guidance_type"].endswith(":hash3d")


@pytest.mark.skipif(UPSTREAM is None, reason="HASH3D_THREESTUDIO names no checkout")
def test_a_real_trainer_trains_saves_and_resumes(tmp_path):
    """Lightning's own hooks in their own order, around one of threestudio's systems cut to its guidance."""
    from threestudio_upstream import Upstream, train_small

    upstream = Upstream(UPSTREAM, tmp_path)
    whole = train_small(upstream, tmp_path / "whole", steps=8)
    first = train_small(upstream, tmp_path / "first", steps=4)
    assert first.syncs == whole.syncs == 0.0 and first.kept
    resumed = train_small(upstream, tmp_path / "second", steps=8, resume=first.checkpoint)
    assert resumed.stats == whole.stats and "8 forwards" in whole.stats
