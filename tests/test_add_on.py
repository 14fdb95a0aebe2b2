"""Methods of other people's objects that run under the cache."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import pytest
import torch
from guidance_stand_ins import DreamSD, pictures, tiny_unet, tokens
from simulated_cuda import CUDA, module_to_gpu, on_gpu, simulated_cuda

import hash3d_cuda as h3d
from hash3d_cuda.add_on import GuidanceCache, content_id, make_config
from hash3d_cuda.sds.settings import POSE_GRIDS

POSE = {"elevation": 0.0, "azimuth": 0.0, "radius": 2.0, "timestep": 500}


def config(**options: Any) -> h3d.Hash3DConfig:
    return h3d.Hash3DConfig(**{"eta": 1.0, "capacity": 16, "groups": 1, **options})


@pytest.fixture
def guided() -> GuidanceCache:
    return GuidanceCache(tiny_unet(), config())


def call(guided: GuidanceCache, seed: int = 0) -> str:
    """Calls the U-Net once; what became of it."""
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    guided._unet(latents, torch.tensor([500]), encoder_hidden_states=tokens(0))
    return guided.cache.last.kind


def test_each_call_has_views_of_its_own(guided):
    """The second is left out, the third is the first again."""
    views = [POSE, None, POSE, {**POSE, "azimuth": 90.0}]
    with guided.during(views.__getitem__):
        assert [call(guided) for _ in views] == ["miss", "plain", "hit", "miss"]
    assert call(guided) == "plain" and guided.stats().forwards == 3


def test_blocks_in_blocks_count_anew(guided):
    numbers: list[tuple[str, int]] = []
    note = lambda name: lambda number: numbers.append((name, number))  # noqa: E731
    with guided.during(note("outer")):
        call(guided)
        with guided.during(note("inner")):
            call(guided)
        call(guided)
    assert numbers == [("outer", 0), ("inner", 0), ("outer", 1)]


def test_a_call_that_raises_leaves_nothing(guided):
    with guided.during(lambda number: POSE):
        with pytest.raises(Exception):  # noqa: B017 - whichever the U-Net raises
            guided._unet(torch.zeros(1, 3, 8, 8), torch.tensor([500]), encoder_hidden_states=tokens(0))
        assert call(guided) == "miss"
    assert call(guided) == "plain"


class Owner:
    def method(self, first: int, second: int = 2, *, third: int = 3) -> tuple[int, int, int]:
        return first, second, third


def test_wrapping_and_removal(guided):
    owner, other, told = Owner(), Owner(), []

    @contextlib.contextmanager
    def around(arguments):
        told.append(arguments)
        yield
        told.append("left")

    guided.wrap(owner, "method", around)
    assert owner.method(1, third=9) == (1, 2, 9) and other.method(1) == (1, 2, 3)
    assert told == [{"first": 1, "second": 2, "third": 9}, "left"]
    with pytest.raises(TypeError):
        owner.method()
    with pytest.raises(AttributeError):
        guided.wrap(owner, "no_such", around)
    unet = guided._unet
    ours, owner.method = owner.method, lambda: None
    with pytest.raises(RuntimeError, match=r"Owner\.method as this cache left it"):
        guided.remove()
    owner.method = ours
    guided.remove()
    guided.remove()
    assert vars(owner) == {} and owner.method(1) == (1, 2, 3)
    assert "forward" not in vars(unet) and not unet._forward_hooks and not unet._forward_pre_hooks
    assert guided.stats().forwards == 0


def test_removal_under_a_wrapped_forward_changes_nothing(guided):
    unet, own = guided._unet, guided._unet.forward
    unet.forward = lambda *args, **kwargs: own(*args, **kwargs)
    with pytest.raises(RuntimeError, match="remove"):
        guided.remove()
    unet.forward = own
    with guided.during(lambda number: POSE):
        assert call(guided) == "miss"
    guided.remove()


def test_a_copy_has_no_cache(guided):
    twin = copy.deepcopy(guided._unet)
    with guided.during(lambda number: POSE):
        twin(torch.zeros(1, 4, 8, 8), torch.tensor([500]), encoder_hidden_states=tokens(0))
    assert guided.stats().forwards == 0 and "forward" not in vars(twin)


def test_content_ids():
    first, second = torch.zeros(2), torch.zeros(2)
    told = content_id(first, {"b": [second, "text"]})
    assert told == content_id(first, {"b": [second, "text"]}) and hash(told) == hash(content_id(first, second, "text"))
    assert told != content_id(first, {"b": [first, "text"]}) and told != content_id(first, {"b": [second, "word"]})
    second += 1
    assert told != content_id(first, {"b": [second, "text"]})
    with torch.inference_mode():
        assert content_id(torch.zeros(1)) != content_id(torch.zeros(1))


def test_configurations():
    made = make_config({"eta": 0.5, "grids": [[30, 30, 1, 100]]}, eta=0.1, groups=4)
    assert (made.eta, made.groups, made.grids) == (0.5, 4, (h3d.Grid(30, 30, 1, 100),))
    assert make_config({"grids": "pose"}).grids == POSE_GRIDS
    assert make_config({"feature_dtype": "int8"}).feature_dtype is torch.int8
    with pytest.raises(ValueError, match=r"feature_dtype.*'float32'.*'float8'"):
        make_config({"feature_dtype": "float8"})
    assert make_config({"memory_budget": "1MiB"}, capacity=4).capacity is None
    with pytest.raises(TypeError, match=r"etta: expected an option of Hash3DConfig: eta, .*check its name"):
        make_config({"etta": 0.5})
    with pytest.raises(ValueError, match="grids"):
        make_config({"grids": "no such"})


def test_drawn_timesteps(guided):
    guidance = DreamSD()
    guidance.min_step, guidance.max_step = 7, 9
    seen = set()
    for _ in range(40):
        with guided.drawn_timestep(guidance) as timestep:
            assert guidance.draw(None, 1).tolist() == [timestep]
        seen.add(timestep)
    assert seen == {7, 8, 9} and (guidance.min_step, guidance.max_step) == (7, 9)
    again = GuidanceCache(tiny_unet(), config(seed=0)).coin
    assert [again.randint(0, 9) for _ in range(4)] != [guided.coin.randint(0, 9) for _ in range(4)]
    with pytest.raises(KeyError), guided.drawn_timestep(guidance):
        raise KeyError
    assert (guidance.min_step, guidance.max_step) == (7, 9)


def test_poses_on_a_gpu_come_in_one_copy():
    with simulated_cuda() as gpu:
        guided = GuidanceCache(module_to_gpu(tiny_unet()), config())
        there = {name: on_gpu(torch.tensor([value, 5.0])) for name, value in (("azimuth", 10.0), ("radius", 2.0))}
        found = guided.on_host(elevation=[1.0, 2.0], **there)
        assert gpu.copies["to host"] <= 1 and guided.stats().host_syncs == 1
        assert found["elevation"] == [1.0, 2.0] and found["azimuth"].tolist() == [10.0, 5.0]
        assert found["radius"].tolist() == [2.0, 5.0]
        strict = GuidanceCache(module_to_gpu(tiny_unet()), config(strict=True))
        with pytest.raises(ValueError, match=r"azimuth, radius: expected a host value"):
            strict.on_host(**there)
        assert strict.on_host(elevation=1.0, azimuth=torch.ones(2)).keys() == {"elevation", "azimuth"}


def test_a_step_on_a_gpu_never_waits():
    """A whole ``train_step`` with host poses and a timestep drawn on the host: misses, then hits."""
    with simulated_cuda() as gpu:
        guidance = DreamSD()
        module_to_gpu(guidance.unet)
        guidance.embeddings = {name: on_gpu(value) for name, value in guidance.embeddings.items()}
        guidance.noisy = lambda images, t: images
        guidance.draw = lambda ratio, batch: torch.full((batch,), guidance.min_step).to(CUDA, non_blocking=True)
        guided = GuidanceCache(guidance.unet, config(groups=2, grids=[(30, 30, 1, 1000)], strict=True))

        @contextlib.contextmanager
        def around(arguments):
            with guided.drawn_timestep(guidance) as timestep:
                told = {**POSE, "timestep": timestep, "condition": content_id(guidance.embeddings)}
                with guided.during(lambda number: told):
                    yield

        guided.wrap(guidance, "train_step", around)
        images = on_gpu(pictures(1))
        guidance.train_step(images)  # the first one makes the table
        with gpu.watch():
            for _ in range(2):
                guidance.train_step(images)
        assert guided.cache.served() == {"hits": 2, "misses": 1, "bypasses": 0}
