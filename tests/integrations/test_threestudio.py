"""threestudio's add-on: hits, row orders, what is never cached, conditions, resuming, and what a user can get wrong.

Every test runs against stand-ins with threestudio's call signatures and, where ``HASH3D_THREESTUDIO`` names a checkout
of it, against its own guidances with small random-weight U-Nets.
"""

from __future__ import annotations

import os
import warnings

import pytest
import torch

pytest.importorskip("diffusers")

from threestudio_cases import ALWAYS, NAMES, SMALL, TOLD_PROMPTS, StandIn, ask, close, make_batch, make_prompt, moved

UPSTREAM = os.environ.get("HASH3D_THREESTUDIO")
SOURCES = [
    "stand-in",
    pytest.param("upstream", marks=pytest.mark.skipif(UPSTREAM is None, reason="HASH3D_THREESTUDIO names no checkout")),
]
KINDS = list(NAMES)


@pytest.fixture(scope="module", params=SOURCES)
def source(request, tmp_path_factory):
    if request.param == "stand-in":
        return StandIn()
    from threestudio_upstream import Upstream

    return Upstream(UPSTREAM, tmp_path_factory.mktemp("models"))


@pytest.fixture
def prompt(source):
    return make_prompt(source)


def counts(guidance) -> tuple[int, int, int]:
    stats = guidance.hash3d.cache.stats()
    return stats.forwards, stats.hits, stats.misses


@pytest.mark.parametrize(
    ("kind", "views"),
    [(kind, views) for kind in KINDS for views in (1, 2, 3, 4) if kind in ("sd", "zero123") or views > 2],
)
def test_hits_answer_as_the_plain_guidance_does(source, prompt, kind, views):
    """All miss, all hit, and one of them moved: wrong rows would give a view another's features."""
    plain, cached, batch = source.make(kind), source.make(kind, ALWAYS), make_batch(views)
    for asked, hits in ((batch, 0), (batch, views), (moved(batch, 0, 200.0), views - 1)):
        assert close(ask(cached, kind, asked, prompt), ask(plain, kind, asked, prompt))
        assert cached.hash3d.cache.last.kinds.count("hit") == hits
    assert counts(cached) == (3, 2 * views - 1, views + 1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_hit_is_served_from_the_cache(source, prompt, kind):
    """Other latents under the same pose and timestep: the answer is near, and not the plain guidance's."""
    plain, cached, batch = source.make(kind), source.make(kind, {**ALWAYS, "position": 1}), make_batch(1)
    for guidance in (plain, cached):
        guidance.min_step = guidance.max_step = 500
    ask(cached, kind, batch, prompt, seed=0)
    served, full = (ask(guidance, kind, batch, prompt, seed=1) for guidance in (cached, plain))
    assert counts(cached)[1] == 1
    assert not torch.equal(served["grad"], full["grad"])
    with cached.hash3d.without():
        assert close(ask(cached, kind, batch, prompt, seed=1), full)


@pytest.mark.parametrize("kind", TOLD_PROMPTS)
def test_perp_neg_with_one_view(source, kind):
    plain, cached, batch = source.make(kind), source.make(kind, ALWAYS), make_batch(1)
    prompt = make_prompt(source, perp_neg=True)
    for hits in (0, 1):
        assert close(ask(cached, kind, batch, prompt), ask(plain, kind, batch, prompt))
        assert counts(cached)[1] == hits
    assert cached.hash3d.cache.config.groups == 4


@pytest.mark.parametrize("views", [2, 3, 4])
@pytest.mark.parametrize("kind", TOLD_PROMPTS)
def test_perp_neg_with_more_views_wants_its_rows_repaired(source, kind, views):
    """As upstream pairs rows, those of a negative prompt have another view's latents: nothing is cached then."""
    prompt, batch = make_prompt(source, perp_neg=True), make_batch(views)
    plain, off = source.make(kind), source.make(kind, ALWAYS)
    said = len(source.said)
    for _ in range(2):
        assert close(ask(off, kind, batch, prompt), ask(plain, kind, batch, prompt))
    assert off.hash3d.cache is None
    assert [line for line in source.said[said:] if "repair_perp_neg" in line] == source.said[said:][:1]

    never = source.make(kind, {**SMALL, "eta": 0.0, "repair_perp_neg": True})
    cached = source.make(kind, {**ALWAYS, "repair_perp_neg": True})
    for asked, hits in ((batch, 0), (batch, views), (moved(batch, 0, 200.0), views - 1)):
        assert close(ask(cached, kind, asked, prompt), ask(never, kind, asked, prompt))
        assert cached.hash3d.cache.last.kinds.count("hit") == hits


@pytest.mark.parametrize("kind", TOLD_PROMPTS)
def test_repaired_rows_are_the_views_own(source, kind, monkeypatch):
    guidance = source.make(kind, {**ALWAYS, "repair_perp_neg": True})
    seen = []
    base = type(guidance).__mro__[2]
    original = base.forward_unet

    def record(self, *args, **kwargs):
        seen.append(args[-2:])
        return original(self, *args, **kwargs)

    monkeypatch.setattr(base, "forward_unet", record)
    ask(guidance, kind, make_batch(3), make_prompt(source, perp_neg=True))
    ((latents, t),) = seen
    own = [0, 1, 2, 0, 1, 2, 0, 0, 1, 1, 2, 2]
    assert torch.equal(latents, latents[own]) and torch.equal(t, t[own])
    assert len({row.sum().item() for row in latents}) == 3


def test_score_jacobian_chaining(source, prompt):
    plain, cached = source.make("sd", use_sjc=True), source.make("sd", ALWAYS, use_sjc=True)
    for hits in (0, 2):
        assert close(ask(cached, "sd", make_batch(2), prompt), ask(plain, "sd", make_batch(2), prompt))
        assert counts(cached)[1] == hits


@pytest.mark.parametrize("kind", ["sd", "zero123"])
def test_evaluation_is_bypassed(source, prompt, kind):
    plain, cached = source.make(kind), source.make(kind, ALWAYS)
    for guidance in (plain, cached):
        guidance.min_step = guidance.max_step = 40
    runs = []
    inner = cached.unet.conv_in if kind == "sd" else cached.model.model.diffusion_model.input_blocks[0][0]
    inner.register_forward_hook(lambda *_: runs.append(1))
    for hits in (0, 1):
        told = (make_batch(1), prompt)
        assert close(ask(cached, kind, *told, guidance_eval=True), ask(plain, kind, *told, guidance_eval=True))
        assert counts(cached) == (1 + hits, hits, 1)
    assert len(runs) > 2 and [len(table) for table in cached.hash3d.cache.tables] == [1]


@pytest.mark.parametrize("own_phi", [True, False])
def test_vsd_phi_is_never_cached(source, prompt, own_phi):
    changes = {"guidance_type": "vsd", "vsd_use_lora": False, "own_phi": own_phi}
    plain, cached = source.make("unified", **changes), source.make("unified", ALWAYS, **changes)
    for hits in (0, 2):
        assert close(ask(cached, "unified", make_batch(2), prompt), ask(plain, "unified", make_batch(2), prompt))
        assert counts(cached)[:2] == (1 + hits // 2, hits)
    assert hasattr(cached.pipe_phi.unet, "_diffusers_hook") is not own_phi
    assert sum(map(len, cached.hash3d.cache.tables)) == 2


def test_vsd_with_an_adapter_in_the_same_unet_is_left_alone(source, prompt):
    cached = source.make("unified", ALWAYS, guidance_type="vsd", vsd_use_lora=True)
    said = len(source.said)
    for _ in range(2):
        ask(cached, "unified", make_batch(1), prompt)
    assert cached.hash3d.cache is None and not hasattr(cached.pipe.unet, "_diffusers_hook")
    assert sum("VSD trains" in line for line in source.said[said:]) == 1


@pytest.mark.parametrize("kind", TOLD_PROMPTS)
def test_prompts_do_not_mix(source, kind):
    """Another text, and the same text with other numbers, are answered by themselves."""
    plain, cached, batch = source.make(kind), source.make(kind, {**ALWAYS, "max_conditions": 4}), make_batch(1)
    prompts = [make_prompt(source), make_prompt(source, "a horse", seed=1), make_prompt(source, seed=2)]
    for hits in (0, 3):
        for number, told in enumerate(prompts):
            assert close(ask(cached, kind, batch, told), ask(plain, kind, batch, told))
            assert counts(cached)[1] == (hits and number + 1)
    prompts[0].text_embeddings_vd.mul_(1.5)
    assert close(ask(cached, kind, batch, prompts[0]), ask(plain, kind, batch, prompts[0]))
    assert counts(cached)[1] == 3


@pytest.mark.parametrize("kind", TOLD_PROMPTS)
def test_directions_do_not_mix(source, prompt, kind):
    """44 and 46 degrees lie in one cell of the coarsest grid; only the former is in front."""
    for directed in (True, False):
        cached = source.make(kind, ALWAYS, view_dependent_prompting=directed)
        plain = source.make(kind, view_dependent_prompting=directed)
        for hits, azimuth in ((0, 44.0), (0 if directed else 1, 46.0)):
            answer = ask(cached, kind, make_batch(1, azimuth), prompt)
            assert counts(cached)[1] == hits
            assert close(answer, ask(plain, kind, make_batch(1, azimuth), prompt))
        assert cached.hash3d.cache.config.max_conditions == (4 if directed else 1)


@pytest.mark.parametrize("kind", ["zero123", "stable-zero123", "zero123-unified"])
def test_pictures_do_not_mix(source, kind):
    plain, cached = source.make(kind), source.make(kind, ALWAYS)
    name = "image_latents" if kind == "zero123-unified" else "c_concat"
    for change in (1.0, -2.0):
        for guidance in (plain, cached):
            setattr(guidance, name, getattr(guidance, name) * change)
        assert close(ask(cached, kind, make_batch(2)), ask(plain, kind, make_batch(2)))
    assert counts(cached) == (2, 0, 4)


@pytest.mark.parametrize("kind", KINDS)
def test_timesteps_drawn_on_the_host_are_those_used(source, prompt, kind):
    cached = source.make(kind, {**ALWAYS, "host_timesteps": True})
    ask(cached, kind, make_batch(3), prompt)
    told, used = [], []
    tell, unet = cached.hash3d.cache.views, cached.hash3d.unet
    cached.hash3d.cache.views = lambda **views: told.append(views["timestep"]) or tell(**views)
    forward, vars(unet)["forward"] = (
        unet.forward,
        lambda x, t, *args, **kwargs: used.append(t) or forward(x, t, *args, **kwargs),
    )
    for seed in range(4):
        ask(cached, kind, make_batch(3), prompt, seed=seed)
        assert used[-1].tolist() == told[-1].tolist() * 2
        assert all(cached.min_step <= step <= cached.max_step for step in told[-1].tolist())
        assert (len(set(told[-1].tolist())) == 1) == (kind in ("unified", "zero123-unified"))
    assert len(used) == 4 and len({tuple(steps.tolist()) for steps in used}) == 4
    vars(unet)["forward"] = forward
    cached.hash3d.remove()
    assert "add_noise" not in vars(cached.scheduler)


@pytest.mark.parametrize("kind", ["sd", "zero123", "zero123-unified"])
def test_removal_and_a_second_run(source, prompt, kind):
    cached, batch = source.make(kind, ALWAYS), make_batch(2)
    unet = cached.hash3d.unet
    before = set(vars(unet))
    expected = [ask(cached, kind, batch, prompt) for _ in range(2)][-1]
    assert counts(cached)[1] == 2
    cached.hash3d.remove()
    assert set(vars(unet)) == before and cached.hash3d.cache is None
    assert close(ask(source.make(kind), kind, batch, prompt), expected)
    assert close(ask(cached, kind, batch, prompt), expected)  # begins anew
    assert counts(cached) == (1, 0, 2)


@pytest.mark.parametrize("kind", ["sd", "zero123", "zero123-unified"])
def test_figures_are_in_the_output(source, prompt, kind):
    said = len(source.said)
    cached, batch = source.make(kind, {**ALWAYS, "log_every": 2}), make_batch(1)
    outputs = [ask(cached, kind, batch, prompt) for _ in range(4)]
    assert [output["hash3d_served"] for output in outputs] == [0.0, 0.5, pytest.approx(2 / 3), 0.75]
    assert outputs[-1]["hash3d_hit_rate"] == 0.75 and outputs[-1]["hash3d_host_syncs"] == 0.0
    lines = [line for line in source.said[said:] if "hash3d after" in line]
    assert lines[-1] == "hash3d after 4 steps: served 0.750, hit_rate 0.750, host_syncs 0.000" and len(lines) == 2


@pytest.mark.parametrize("kind", ["sd", "zero123"])
def test_a_state_goes_on_with_the_same_decisions(source, prompt, kind, tmp_path):
    options = {**SMALL, "eta": 0.5, "host_timesteps": True}
    one = source.make(kind, options)
    for guidance in (one,):
        guidance.min_step = guidance.max_step = 500
    for step in range(6):
        ask(one, kind, make_batch(2), prompt, seed=step)
    torch.save(one.hash3d_state_dict(), tmp_path / "state.pt")
    two = source.make(kind, options)
    two.min_step = two.max_step = 500
    two.hash3d_load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for step in range(6, 14):
        some, others = (ask(guidance, kind, make_batch(2), prompt, seed=step) for guidance in (one, two))
        assert torch.equal(some["grad"], others["grad"])
        assert one.hash3d.cache.last == two.hash3d.cache.last
    assert counts(one) == counts(two) and counts(one)[1] > 0


def test_switched_off_it_is_the_plain_guidance(source, prompt):
    off = source.make("sd", {"enabled": False, "eta": 1.0})
    assert close(ask(off, "sd", make_batch(2), prompt), ask(source.make("sd"), "sd", make_batch(2), prompt))
    assert off.hash3d is None and off.hash3d_state_dict() is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"etta": 0.5}, "etta"),
        ({"groups": 4}, "the guidance tells it"),
        ({"interval": 5}, "'interval'; leave it out: it is for pipelines"),
        ({"eta": 2.0}, r"^system\.guidance\.hash3d\.eta: "),
        ({"grids": [10, 10]}, "grids"),
        ({"grids": [[10, 10, 0.1]], "feature_dtype": "float8"}, "feature_dtype"),
        ({"decide": "device"}, "decide"),
        ({"host_timesteps": "yes"}, "host_timesteps"),
        ({"log_every": -1}, "log_every"),
    ],
)
def test_wrong_options_are_named_before_anything_is_loaded(source, options, told):
    with pytest.raises((TypeError, ValueError), match=told):
        source.make("sd", options)


@pytest.mark.parametrize(("name", "dtype"), [("float16", torch.float16), ("int8", torch.int8)])
def test_grids_and_dtype_from_a_configuration(source, prompt, name, dtype):
    told = {"grids": [[30, 30, 0.2, 1000]], "feature_dtype": name, "queue_length": 1, "capacity": 8}
    cached = source.make("sd", told)
    ask(cached, "sd", make_batch(1), prompt)
    options = cached.hash3d.cache.table.options
    assert options.grids[0].timestep == 1000 and options.feature_dtype is dtype


def test_no_warning_is_given(source, prompt):
    cached = source.make("sd", ALWAYS)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        ask(cached, "sd", make_batch(2), prompt)
