"""The paper's systems as recipes: their files, their stages, two priors, reuse in time."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from prior_folders import write_stable_diffusion, write_zero123
from sds_stand_ins import TinyPrior

from hash3d_cuda.keys import Grid
from hash3d_cuda.prior import load_prior
from hash3d_cuda.prior.pictures import open_picture
from hash3d_cuda.sds.recipes import RECIPES, SCALES, distil_recipe, load_recipe
from hash3d_cuda.sds.run import SdsRun
from hash3d_cuda.sds.sampler import ViewSampler
from hash3d_cuda.sds.scenes.decoded import DecodedScene
from hash3d_cuda.sds.scenes.mesh import MeshScene
from hash3d_cuda.sds.settings import GenerateSettings

TWO_STAGES = {"dreamgaussian", "magic123", "magic3d", "fantasia3d"}
FROM_PICTURES = {"dreamgaussian", "zero123-nerf", "zero123-gs", "magic123"}
EVERYWHERE = (Grid(180.0, 360.0, 10.0, 2000.0),)  # one cell for all there is
SMALL = dict(scene_size=8, memory_budget="16MiB", views_per_step=1)


@pytest.fixture(scope="module")
def shipped():
    return load_prior()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("priors")
    return {
        "text": write_stable_diffusion(root / "sd", "2.1"),
        "image": write_zero123(root / "zero123"),
    }


def picture(size=64):
    return Image.new("RGB", (size, size), (200, 80, 40))


def test_the_files():
    for name in RECIPES:
        recipe = load_recipe(name)
        assert recipe.kind == ("image" if name in FROM_PICTURES else "text")
        assert len(recipe.stages) == (2 if name in TWO_STAGES else 1)
        assert all(isinstance(s, GenerateSettings) for scale in SCALES for s in recipe.settings(scale))
        assert {s.eta for s in recipe.settings("paper")} == {0.1}, "the paper's, whatever the released code takes"
        assert all(s.steps <= 400 for s in recipe.settings("small"))


def test_values_of_the_paper():
    assert [s.steps for s in load_recipe("magic3d").settings("paper")] == [10000, 10000]
    assert [s.steps for s in load_recipe("dreamgaussian").settings("paper")] == [500, 50]
    dreamfusion = load_recipe("dreamfusion").settings("paper")[0]
    assert (dreamfusion.steps, dreamfusion.guidance_scale) == (10000, 100)
    zero123 = load_recipe("zero123-nerf").settings("paper")[0]
    assert (zero123.steps, zero123.guidance_scale, zero123.views_per_step) == (1000, 3, 1)
    for stage in load_recipe("magic123").settings("paper"):
        assert (stage.second_weight, stage.sds_weight) == (0.025, 0.1)
    assert load_recipe("gaussian-dreamer").settings("paper")[0].steps == 1200


def test_overrides_go_for_every_stage():
    stages = load_recipe("magic123").settings("small", steps=3, eta=0.5)
    assert [(s.steps, s.eta) for s in stages] == [(3, 0.5)] * 2
    with pytest.raises(ValueError, match="stepps"):
        load_recipe("magic123").settings("small", stepps=3)
    with pytest.raises(ValueError, match="scale: expected 'small' or 'paper', got 'large'"):
        load_recipe("magic123").settings("large")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("title = ", r"Invalid value"),
        ('title = "x"\nkind = "video"', r"kind: expected 'text' or 'image', got 'video'"),
        ('title = "x"\nkind = "text"', r"stages: expected one or two"),
        ('kind = "text"', r"title: expected a text"),
        ('title = "x"\nkind = "text"\nsteps = 3', r"unknown field steps"),
        ('title = "x"\nkind = "text"\n[[stages]]\ntitle = "a"\nsmal = {}', r"stage 1: unknown field smal"),
        ('title = "x"\nkind = "text"\n[[stages]]\ntitle = "a"\nsmall = { stps = 1 }', r"1: small: unknown field stps"),
        ('title = "x"\nkind = "text"\n[[stages]]\ntitle = "a"\nsmall = { device = "cuda" }', r"unknown field device"),
        ('title = "x"\nkind = "text"\n[[stages]]\ntitle = "a"\npaper = { eta = 2.0 }', r"stage 1: paper: eta"),
        ('title = "x"\nkind = "text"\n[[stages]]\ntitle = "a"\nsmall = 3', r"small: expected a table"),
    ],
)  # fmt: skip
def test_a_malformed_file_is_named_with_its_field(tmp_path, text, complaint):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint) as error:
        load_recipe(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("scenes, kept", [(("mesh", "voxels"), False), (("voxels", "gaussians"), False),
                                          (("voxels", "voxels"), True), (("gaussians", "mesh"), True)])  # fmt: skip
def test_a_stage_goes_on_with_the_scene_before_or_its_mesh(tmp_path, scenes, kept):
    stages = "".join(f'[[stages]]\ntitle = "a"\ncommon = {{ scene = "{scene}" }}\n' for scene in scenes)
    path = tmp_path / "own.toml"
    path.write_text('title = "own"\nkind = "text"\n' + stages)
    if kept:
        assert [s.scene for s in load_recipe(path).settings()] == list(scenes)
        return
    with pytest.raises(ValueError, match=f"own.toml.*scene: .*{scenes[0]}.*{scenes[1]}"):
        load_recipe(path)


def test_an_unknown_recipe_lists_the_known():
    with pytest.raises(ValueError, match=r"recipe: 'dreamfusoin' is neither a file nor one of .*dreamfusion"):
        load_recipe("dreamfusoin")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_on_the_shipped_prior(shipped, name):
    content = "teddy bear"
    if name in FROM_PICTURES:
        content = open_picture("hash3d_cuda/assets/inputs/teddy-bear.png")
    result = distil_recipe(name, shipped, content, steps=2, views_per_step=1)
    assert result["views"].shape == (16, 3, 64, 64) and result["views"].isfinite().all()
    assert [run.step for run in result["runs"]] == [2] * (2 if name in TWO_STAGES else 1)
    if name in TWO_STAGES:
        assert isinstance(result["runs"][1].scene, MeshScene)
    assert not hasattr(shipped.unet, "_diffusers_hook") or not shipped.unet._diffusers_hook.hooks


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_on_narrow_pipelines(folders, name):
    """Real pipelines' topology and classes with narrow random U-Nets, the paper's settings but for the scene's size."""
    recipe = load_recipe(name)
    second = None
    if recipe.two_priors:
        text = load_prior(folders["text"])
        second = text, text.resolve("a bear")
    gaussians = recipe.settings("paper")[0].scene == "gaussians"
    result = distil_recipe(
        recipe, load_prior(folders[recipe.kind]), picture() if recipe.kind == "image" else "a bear", "paper",
        second=second, steps=2, scene_size=64 if gaussians else 16, memory_budget="16MiB",
    )  # fmt: skip
    assert result["views"].isfinite().all()


def test_the_wrong_kind_of_subject(shipped):
    with pytest.raises(ValueError, match="the recipe 'zero123-gs' takes a picture, got the name 'barrel'"):
        distil_recipe("zero123-gs", shipped, "barrel")
    with pytest.raises(ValueError, match="the recipe 'dreamfusion' takes a name or prompt, got a picture"):
        distil_recipe("dreamfusion", TinyPrior(), picture())


def test_a_prior_without_names_needs_a_second(folders):
    with pytest.raises(ValueError, match=r"second: the recipe 'magic123' asks a text prior too"):
        distil_recipe("magic123", load_prior(folders["image"]), picture())


def two_priors(second=None, **values):
    prior = TinyPrior()
    settings = GenerateSettings(**{**SMALL, "steps": 4, "second_weight": 0.25, "sds_weight": 0.75, **values})
    return SdsRun(prior, prior.resolve(picture(16)), settings, second=second or (prior, prior.resolve("cube")))


def test_name_and_picture_are_two_conditions_of_one_cache():
    with two_priors(eta=1.0, grids=EVERYWHERE) as run:
        run.train_step()
        assert run.served == {"hits": 0, "misses": 2, "bypasses": 0}, "the second must not find the first's feature"
        run.train_step()
        assert run.served == {"hits": 2, "misses": 2, "bypasses": 0}
        assert len(run.caches) == 1 and len(run.guidance.cache._hooked.cached.store._tables) == 2


def test_two_unets_have_a_cache_each():
    other = TinyPrior(seed=1)
    with two_priors((other, other.resolve("cube")), eta=1.0, grids=EVERYWHERE) as run:
        run.train_step()
        run.train_step()
        assert len(run.caches) == 2 and run.served == {"hits": 2, "misses": 2, "bypasses": 0}
        assert [cache.served()["hits"] for cache in run.caches] == [1, 1]


def test_the_weights_of_two_priors():
    def loss(**weights):
        with two_priors(cache=False, **weights) as run:
            run.scene.regularisation = lambda: torch.zeros(())
            return float(run.train_step())

    rest = loss(sds_weight=0.0, second_weight=1e-12)
    first, both = loss(sds_weight=1.0, second_weight=1e-12) - rest, loss(sds_weight=0.5, second_weight=2.0) - rest
    second = (both - 0.5 * first) / 2
    assert first > 0 and second > 0
    assert loss(sds_weight=2.0, second_weight=1.0) - rest == pytest.approx(2 * first + second, rel=1e-4)


def test_a_latent_scene_is_not_encoded_in_a_step():
    prior = TinyPrior()
    with SdsRun(prior, prior.resolve("cube"), GenerateSettings(**SMALL, steps=2, latent=True)) as run:
        assert isinstance(run.scene, DecodedScene)
        prior.encode = prior.decode = None
        before = [p.clone() for p in run.scene.parameters()]
        run.train_step()
        assert any(not torch.equal(a, b) for a, b in zip(before, run.scene.parameters(), strict=True))
    with pytest.raises(ValueError, match="latent"):
        GenerateSettings(scene="gaussians", latent=True)
    with pytest.raises(ValueError, match="latent"):
        SdsRun(prior, TinyPrior().resolve(picture(16)), GenerateSettings(**SMALL, latent=True))


def refine(**values):
    prior = TinyPrior()
    settings = GenerateSettings(
        **{**SMALL, "steps": 2, "objective": "refine", "t_high": 0.2, "t_low": 0.2, "denoise_stride": 20,
           "reuse_interval": 5, **values}
    )  # fmt: skip
    return SdsRun(prior, prior.resolve("cube"), settings)


def test_refinement_reuses_features_in_time_alone():
    with refine(eta=0.0) as run:  # DeepCache's part in the paper; the coin has none
        run.train_step()
        # t = 200, 180, ... 20: cells of 100 hold one, five and four of them.
        assert run.served == {"hits": 7, "misses": 3, "bypasses": 0}
        run.train_step()
        assert run.served == {"hits": 14, "misses": 6, "bypasses": 0}, "nothing is kept for the next picture"
    with refine(reuse_interval=1) as run:
        run.train_step()
        assert run.served == {"hits": 0, "misses": 10, "bypasses": 0}
    with refine(cache=False) as run:
        run.train_step()
        assert run.served == {"hits": 0, "misses": 0, "bypasses": 10}


def test_refinement_ends_where_the_prior_is_certain():
    """A prior that always answers with one picture refines every render to it."""
    with refine(cache=False) as run:
        answer = torch.full((1, 3, 16, 16), 0.25)
        clean = run.prior.encode(answer)
        run.guidance._forward = lambda noisy, timestep, views: torch.cat([clean, clean])
        images = torch.rand(1, 3, 16, 16)
        target = run.guidance.target(images, run.sampler.views(0), run.generator)
        torch.testing.assert_close(target, answer)
        assert run.guidance.loss(images, target, run.sampler.views(0)) == (images - answer).square().mean()


def test_ranges_of_timesteps_move():
    settings = GenerateSettings(steps=101, schedule="uniform", t_high=0.98, t_low=0.7, t_move=(0.8, 0.3, 0.1, 0.2))
    sampler = ViewSampler(settings, (0, 10), (2, 2))
    assert sampler._range(0.0) == sampler._range(0.1) == (0.7, 0.98)
    assert sampler._range(0.15) == pytest.approx((0.5, 0.89)) and sampler._range(0.9) == pytest.approx((0.3, 0.8))
    drawn = [t for step in range(30, 101) for t in sampler.views(step).timestep]
    assert 299 <= min(drawn) < 400 and 700 < max(drawn) <= 800
    jump = ViewSampler(replace(settings, t_move=(0.8, 0.3, 0.4, 0.4)), (0, 10), (2, 2))
    assert jump._range(0.39) == (0.7, 0.98) and jump._range(0.4) == pytest.approx((0.3, 0.8))
    for bad in ((0.1, 0.2, 0.3), (0.3, 0.8, 0.1, 0.2), (0.8, 0.3, 0.5, 0.2), "high"):
        with pytest.raises((ValueError, TypeError), match="t_move"):
            replace(settings, t_move=bad)
    assert GenerateSettings.from_dict(settings.as_dict()) == settings


def test_random_shading_comes_after_albedo_and_leaves_the_views_alone():
    settings = GenerateSettings(steps=400, shading="random", shading_after=0.25)
    sampler, plain = (ViewSampler(s, (-10, 60), (2, 2)) for s in (settings, replace(settings, shading="albedo")))
    drawn = [sampler.shading(step, sampler.views(step)) for step in range(400)]
    assert all(shading is None for shading, _ in drawn[:100])
    shares = [sum(s == name for s, _ in drawn[100:]) / 300 for name in (None, "lambert", "textureless")]
    assert shares == pytest.approx([0.25, 0.375, 0.375], abs=0.08)
    assert all(len(light) == 2 and len(light[0]) == 3 for shading, light in drawn if shading)
    assert [sampler.views(s) for s in range(5)] == [plain.views(s) for s in range(5)]
    assert [shading for shading, _ in drawn] == [sampler.shading(s, sampler.views(s))[0] for s in range(400)]


def test_a_fixed_shape_stays_and_its_colours_learn(shipped):
    runs = distil_recipe("fantasia3d", shipped, "barrel", steps=2, views_per_step=1, scene_size=12)["runs"]
    before, after = runs[0].scene, runs[1].scene
    assert torch.equal(before.field, after.field) and not torch.equal(before.colour, after.colour)
