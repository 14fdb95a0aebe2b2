"""``decide="device"``, its pieces run one by one on the CPU: the same answers as ``decide="host"``."""

from __future__ import annotations

import pytest
import torch
from both_caches import OPTIONS, Both, walk
from eager_runner import eager_runner  # noqa: F401
from unet_shapes import SHORT, build_inputs, build_residuals, build_unet

import hash3d_cuda as h3d
from hash3d_cuda.hook import apply_hash3d

pytestmark = pytest.mark.usefixtures("eager_runner")
HALF = dict(rtol=1e-3, atol=2e-3)  # stored in half precision, a rounding error of float32 becomes one of float16


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("name", ["sd15", "zero123", "sdxl"])
def test_one_view_at_a_time(name, eta):
    """Hits, misses, bypasses and answers over a random sequence; with room for few entries."""
    both = Both(name, shape={}, eta=eta, capacity=5)  # as deep as the public models
    kinds = [kind for (kind,) in walk(both, 1, 20)]
    both.compare()
    assert set(kinds) == ({"hit", "miss"} if eta == 1.0 else {"hit", "miss", "bypass"})


@pytest.mark.parametrize("rows", ["group-major", "item-major", lambda b, g: [[2 * i + 1, 2 * i] for i in range(b)]])
@pytest.mark.parametrize("batch", [2, 3])
def test_several_views_at_a_time(batch, rows, eager_runner):  # noqa: F811
    """In a partial batch deep runs for all rows, and only what was not found is stored."""
    both = Both(rows=rows, eta=0.8)
    made = walk(both, batch, 25)
    both.compare(rows_saved=False)
    assert any(len(set(kinds)) > 1 for kinds in made)
    whole = [kinds for kinds in made if set(kinds) == {"hit"}]
    assert both.device.stats().rows_saved == 2 * batch * len(whole)
    assert eager_runner.launches == len(made) - 1 and eager_runner.bodies == len(made) - 1 - len(whole)
    assert eager_runner.made == 1


def test_entries_that_differ_in_type_and_format():
    both = Both(near=HALF, feature_dtype=torch.float16)
    for unet in both.unets:
        unet.to(memory_format=torch.channels_last)
    walk(both, 2, 8)
    both.compare(rows_saved=False)


@pytest.mark.parametrize("feature_dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
def test_features_in_8_bits(feature_dtype):
    """A hit answers in float16 by way of the scales; the very same bits are stored. With room for few entries."""
    both = Both(near=HALF, feature_dtype=feature_dtype, capacity=5)
    assert {kind for (kind,) in walk(both, 1, 12)} == {"hit", "miss"}
    host, device = (cache.table for cache in both.caches)
    for table in (host, device):
        assert table.options.feature_dtype is feature_dtype and len(table) > 2
    mine, theirs = device._state_dict(), host._state_dict()
    assert torch.equal(mine["serials"], theirs["serials"])
    for name in ("features", "scales"):
        assert torch.equal(mine[name].view(torch.uint8), theirs[name].view(torch.uint8)), name


def test_the_timestep_argument_in_all_its_forms():
    """As a number, a tensor of one or of a value per row; told to ``views`` or not."""
    both = Both()
    inputs = build_inputs(both.unets[0], rows=4)
    for timestep in (500, 500.0, torch.tensor(500), torch.full((4,), 500), torch.tensor([500, 100, 500, 100])):
        given = {**inputs, "timestep": timestep}
        both.call(given, azimuth=[0.0, 90.0])
        both.call(given, azimuth=[0.0, 90.0], timestep=[700, 800])
    assert both.call({**inputs, "timestep": 300}, azimuth=[0.0, 90.0]) == ("miss", "miss")
    assert both.call({**inputs, "timestep": 300}, azimuth=[0.0, 90.0]) == ("hit", "hit")
    assert both.call({**inputs, "timestep": 900}, azimuth=[0.0, 90.0]) == ("miss", "miss")
    both.compare(rows_saved=False)


def test_poses_in_all_their_forms():
    both = Both()
    inputs = build_inputs(both.unets[0], rows=4)
    kinds = [
        both.call(inputs, azimuth=azimuth, radius=radius, timestep=500)
        for azimuth, radius in [
            ([10, 95], 2.0),
            (torch.tensor([10.0, 95.0]), torch.tensor(2.0)),
            (torch.tensor([10, 95], dtype=torch.int64), torch.tensor([2.0])),
        ]
    ]
    assert kinds == [("miss", "miss"), ("hit", "hit"), ("hit", "hit")]
    cache = both.device
    wrong = pytest.raises(ValueError, match="elevation, azimuth, radius, timestep: expected 1 or 2")
    with wrong, cache.views(elevation=0.0, azimuth=[1, 2, 3], radius=2.0, timestep=5):
        both.unets[1](**inputs)
    with pytest.raises(ValueError, match="elevation, azimuth, radius, timestep"), cache.views([1, 2, 3], [1, 2], 2.0):
        pass
    with pytest.raises(TypeError, match="radius"), cache.views(1, 2, "far"):
        pass


def test_a_residual_network_joins_in():
    both = Both()
    inputs = build_inputs(both.unets[0], rows=2)
    with torch.no_grad():
        residuals = build_residuals(both.unets[0], inputs)
    assert [both.call({**inputs, **residuals}, timestep=500) for _ in range(2)] == [("miss",), ("hit",)]
    changed = {**residuals, "mid_block_additional_residual": residuals["mid_block_additional_residual"] + 1}
    both.call({**inputs, **changed}, timestep=900)
    both.compare()


@pytest.mark.parametrize("room", [1, 2])
def test_conditions_are_never_mixed(room, eager_runner):  # noqa: F811
    both = Both(max_conditions=room)
    prompts = {name: build_inputs(both.unets[0], rows=2, seed=seed) for seed, name in enumerate("abc")}
    kinds = [both.call(prompts[name], timestep=500, condition=name) for name in "abbaabccb"]
    assert sum(kind == ("hit",) for kind in kinds) == {1: 3, 2: 6}[room]
    both.compare()
    assert eager_runner.made == room, "a table that is emptied for another condition keeps its graph"


def test_several_conditions_in_one_batch_are_refused():
    both = Both()
    inputs = build_inputs(both.unets[1], rows=4)
    wrong = pytest.raises(ValueError, match=r'condition: with decide="device".*pass decide="host"')
    with wrong, both.device.views(0.0, [0.0, 90.0], 2.0, 500, condition=["a", "b"]):
        both.unets[1](**inputs)
    both.call(inputs, azimuth=[0.0, 90.0], timestep=500, condition=["a", "a"])


def test_what_changes_in_the_model_is_noticed(eager_runner):  # noqa: F811
    both = Both()
    inputs = build_inputs(both.unets[0], rows=2)
    assert [both.call(inputs, timestep=500) for _ in range(2)] == [("miss",), ("hit",)]
    for unet in both.unets:
        unet.conv_out.bias.data.add_(0.5)
        with torch.no_grad():
            unet.conv_out.bias.mul_(2.0)
    assert [both.call(inputs, timestep=500) for _ in range(2)] == [("miss",), ("hit",)]
    before = eager_runner.made
    for unet in both.unets:  # to other memory, as .to() and offloading do
        unet.conv_in.weight.data = unet.conv_in.weight.data.clone()
    with pytest.warns(RuntimeWarning, match="the weights have moved"):
        assert both.call(inputs, timestep=500) == ("hit",)
    assert eager_runner.made == before + 1
    for unet in both.unets:
        unet.enable_freeu(0.9, 0.2, 1.2, 1.4)
    assert [both.call(inputs, timestep=500) for _ in range(2)] == [("miss",), ("hit",)]


def test_calls_of_several_forms_take_turns(eager_runner):  # noqa: F811
    """Of one view and of two, with prompts of another length; each has its graph, all share the table."""
    both = Both(eta=1.0)
    for step in range(8):
        batch = 1 + step % 2
        inputs = build_inputs(both.unets[0], rows=2 * batch, seed=step)
        both.call(inputs, azimuth=[0.0, 90.0][:batch], timestep=500)
    both.compare(rows_saved=False)
    assert eager_runner.made == 2
    longer = build_inputs(both.unets[0], rows=2)
    longer["encoder_hidden_states"] = torch.randn(2, 9, 12)
    both.call(longer, timestep=500)
    assert eager_runner.made == 3


def test_clear_remove_and_another_shape():
    both = Both()
    inputs = build_inputs(both.unets[0], rows=2)
    assert [both.call(inputs, timestep=500) for _ in range(2)] == [("miss",), ("hit",)]
    for cache in both.caches:
        cache.clear()
    assert len(both.device.table) == 0
    assert [both.call(inputs, timestep=500) for _ in range(2)] == [("miss",), ("hit",)]
    for cache in both.caches:
        cache.clear()
    larger = build_inputs(both.unets[0], rows=2, size=(16, 8))
    assert [both.call(larger, timestep=500) for _ in range(2)] == [("miss",), ("hit",)]
    both.compare()
    bare = build_unet("sd15", **SHORT)(**inputs).sample
    for cache in both.caches:
        cache.remove()
    assert torch.equal(both.unets[1](**inputs).sample, bare)
    assert both.device.stats() == both.caches[0].stats() and both.device.stats().hits == 3
    apply_hash3d(both.unets[1], h3d.Hash3DConfig(**OPTIONS, decide="device")).remove()


def test_outside_views_and_in_bypass_nothing_is_touched():
    both = Both()
    inputs = build_inputs(both.unets[0], rows=2)
    bare = build_unet("sd15", **SHORT)(**inputs).sample
    assert torch.equal(both.unets[1](**inputs).sample, bare)
    with both.device.bypass(), both.device.views(0.0, 0.0, 2.0, 500):
        assert torch.equal(both.unets[1](**inputs).sample, bare)
    assert both.device.stats().forwards == 0 and both.device.table is None
    wanting = {**inputs, "sample": inputs["sample"].clone().requires_grad_()}
    with both.device.views(0.0, 0.0, 2.0, 500), pytest.warns(RuntimeWarning, match="gradients"):
        assert both.unets[1](**wanting).sample.requires_grad
    assert both.device.stats().bypasses == 1 and both.device.last.plain == "gradients"


def test_an_answer_and_a_decision_stay_what_they_were():
    """Buffers are the next forward's; what was handed out is the caller's."""
    both = Both()
    unet, cache = both.unets[1], both.device
    seen = []
    for azimuth in (0.0, 90.0, 0.0):
        with cache.views(0.0, azimuth, 2.0, 500), torch.no_grad():
            output = unet(**build_inputs(unet, rows=2, seed=int(azimuth))).sample
        seen.append((output, output.clone(), cache.last))
    assert all(torch.equal(output, copy) for output, copy, _ in seen)
    assert [decision.kind for _, _, decision in seen] == ["miss", "miss", "hit"]
    assert seen[2][2].kinds == ("hit",) and "hit" in repr(seen[2][2].kinds)


def test_what_is_not_finite_is_rejected_and_misses():
    both = Both()
    inputs = build_inputs(both.unets[0], rows=2)
    bad = {**inputs, "sample": inputs["sample"].clone()}
    bad["sample"][0, 0, 0, 0] = float("nan")
    for given, azimuth in [(bad, 0.0), (inputs, 0.0), (inputs, 0.0), (bad, 0.0), (inputs, float("nan"))]:
        with both.device.views(0.0, azimuth, 2.0, 500), torch.no_grad():
            both.unets[1](**given)
    stats = both.device.stats()
    assert (stats.hits, stats.misses, stats.rejected) == (1, 4, 3)


def test_a_minimum_similarity_needs_no_copy():
    both = Both(min_similarity=0.9999, initial_similarity=0.0)
    walk(both, 1, 20)
    assert both.device.stats().host_syncs == 0
    assert both.device.stats().hits == both.caches[0].stats().hits
    apply_hash3d(build_unet("sd15"), h3d.Hash3DConfig(**OPTIONS, min_similarity=0.5, strict=True, decide="device"))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_modes_may_change_between_calls(mode):
    both = Both()
    inputs = build_inputs(both.unets[0], rows=2)
    with mode():
        both.call(inputs, timestep=500)
    assert both.call(inputs, timestep=500) == ("hit",)
    with torch.inference_mode():
        assert both.call(inputs, timestep=500) == ("hit",)


def test_compiled_parts():
    both = Both(compile={"backend": "eager"})
    walk(both, 1, 6)
    both.compare()


ERRORS = [
    (dict(mode="noise"), r'decide: expected "host" with mode="noise".*pass decide="host"'),
    (dict(compile={"mode": "reduce-overhead"}), r"decide: .*CUDA graphs of its own.*pass decide="),
]


@pytest.mark.parametrize("options, message", ERRORS)
def test_options_that_do_not_go_together(options, message):
    with pytest.raises(ValueError, match=message):
        h3d.Hash3DConfig(decide="device", **options)
    with pytest.raises(ValueError, match="decide"):
        h3d.Hash3DConfig(decide="gpu")


def test_arguments_on_another_device_are_named(eager_runner):  # noqa: F811
    both = Both()
    inputs = build_inputs(both.unets[1], rows=2)
    inputs["encoder_hidden_states"] = inputs["encoder_hidden_states"].to("meta")
    wrong = pytest.raises(ValueError, match=r"decide: expected all .* on cpu, got one .* on meta")
    with wrong, both.device.views(0.0, 0.0, 2.0, 500):
        both.unets[1](**inputs)
