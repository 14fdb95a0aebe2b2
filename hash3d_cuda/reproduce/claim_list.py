"""The paper's claims: what each says, what follows from its own numbers, and the rule by which it is judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hash3d_cuda.bounds import unet_bound
from hash3d_cuda.keys import PAPER_GRIDS
from hash3d_cuda.reproduce import claim_rules as rules
from hash3d_cuda.reproduce import paper_numbers as paper
from hash3d_cuda.reproduce.claim_data import NOT_HERE, Judgement, Results


@dataclass(frozen=True)
class Claim:
    """One claim; ``judge`` raises :class:`Missing` where its experiment was not run."""

    title: str
    says: str
    follows: str
    judge: Callable[[Results], Judgement]


def not_measured(reason: str) -> Callable[[Results], Judgement]:
    """For what cannot be measured on this machine or without people."""
    return lambda results: Judgement(reason, NOT_HERE)


def quality_arithmetic() -> str:
    """Table 1's and 2's differences beside their standard errors."""
    parts = []
    for system in paper.SYSTEMS:
        digits = 2 if system.table == 1 else 3
        parts.append(f"{system.title} {paper.compared(*system.quality, count_of(system), digits)}")
    beyond = [
        system
        for system in paper.SYSTEMS
        if abs(gain(system)) > 2 * paper.standard_error(*system.quality, count_of(system))
    ]
    named = ", ".join(f"{system.title} ({'better' if gain(system) > 0 else 'worse'})" for system in beyond) or "none"
    return (
        "Differences with the standard errors that the table's own deviations give (PSNR in dB in table 1, CLIP-G/14 "
        f"in table 2, as if independent): {', '.join(parts)}. Beyond two standard errors: {named}."
    )


def count_of(system: paper.System) -> int:
    """Objects or prompts that the means are over."""
    return paper.OBJECTS if system.table == 1 else paper.PROMPTS


def gain(system: paper.System) -> float:
    """With the cache minus without."""
    return system.quality[1][0] - system.quality[0][0]


def against_adaptive(name: str) -> str:
    """Table 4's adaptive score minus a constant grid's, with its standard error."""
    return paper.compared(paper.GRID_SCORES[name], paper.GRID_SCORES["adaptive"], paper.PROMPTS, 3)


def eta_arithmetic() -> str:
    """What the costs say about eta."""
    r = paper.hit_cost(paper.TEXT)
    bounds = ", ".join(f"{unet_bound(eta, r):.2f} ({eta:g})" for eta in (0.1, 0.3, 0.5, 0.7))
    return f"With r = {r:.3f} and every retrieval a hit, the bound on the U-Net's speed-up by eta is {bounds}."


CLAIMS = (
    Claim(
        "Features of nearby views are alike",
        '"a large similarity score in features from views within a [-10°, 10°] range, with the value higher than 0.8" '
        "(section 3.1, figure 2)",
        f"Views in one cell of the coarsest grid are up to {max(grid.azimuth for grid in PAPER_GRIDS):.0f} degrees "
        "apart, beyond the range that is shown.",
        rules.nearby_views,
    ),
    Claim(
        "Features of adjacent timesteps are alike",
        '"features extracted from adjacent timesteps in diffusion models show a high level of similarity" (section '
        "3.1, cited)",
        f"One cell holds up to {max(grid.timestep for grid in PAPER_GRIDS):.0f} timesteps.",
        rules.nearby_timesteps,
    ),
    Claim(
        "Novel views for free",
        '"for angles (δ) up to 5°, novel views closely match fully generated ones", wider ones are blurrier (section '
        "3.1, figure 3)",
        "A DDIM step is linear, so averaged predictions from one noise give the average of the two latents: a blend.",
        rules.free_views,
    ),
    Claim(
        "MACs",
        f"{paper.TEXT[0]:.2f}G to {paper.TEXT[1]:.2f}G (Stable Diffusion), {paper.IMAGE[0]:.2f}G to "
        f"{paper.IMAGE[1]:.2f}G (Zero123) (tables 1 and 2)",
        f"At eta {paper.ETA:g} with every retrieval a hit, a hit costs r = {paper.hit_cost(paper.TEXT):.3f} and "
        f"{paper.hit_cost(paper.IMAGE):.3f} of a pass. The U-Net can then be {paper.TEXT[0] / paper.TEXT[1]:.2f} and "
        f"{paper.IMAGE[0] / paper.IMAGE[1]:.2f} times as fast at most, and nothing else gets faster.",
        rules.macs,
    ),
    Claim(
        "Quality is kept or slightly better",
        '"also results in a slight improvement in performance" (section 1; tables 1 and 2)',
        quality_arithmetic(),
        rules.quality_kept,
    ),
    Claim(
        "Hashing against storing all features",
        "Storing all: 11 min, 8 GB, CLIP-G/14 0.661 on Zero-123 (NeRF), out of memory on DreamFusion; hashing: 7 min, "
        "6 GB, 0.665, and 40 min, 8 GB (table 3)",
        f"The difference of the scores is {paper.compared(paper.STORING_ALL, paper.HASHING, paper.OBJECTS, 3)}.",
        rules.memory,
    ),
    Claim(
        "Time falls as eta rises",
        '"runtime decreases as η increases" (section 4.3, figure 9)',
        eta_arithmetic(),
        rules.eta_time,
    ),
    Claim(
        "Quality improves for eta below 0.3",
        '"For η < 0.3, Hash3D also improved the visual quality" (section 4.3)',
        "Figure 9 gives no deviations.",
        rules.eta_quality,
    ),
    Claim(
        "Little is gained above eta 0.3",
        '"for η > 0.3, the runtime gains were minimal" (section 4.3)',
        "The U-Net's time falls linearly with the share served: what fades is the hit rate, or the time is not the "
        "U-Net's.",
        rules.eta_gains,
    ),
    Claim(
        "Hashing features beats hashing noise",
        '"while Hash3D w/n reduced processing time, it significantly lowered CLIP scores" (section 4.3, figure 10)',
        "With noise a hit costs nothing, so the time must fall.",
        rules.noise,
    ),
    Claim(
        "The adaptive grid is best",
        "CLIP-G/14 0.408 / 0.345 / 0.287 with constant grids from fine to coarse, 0.411 adaptive (table 4)",
        f"Adaptive against the finest: {against_adaptive('fine')}; against the coarsest: {against_adaptive('coarse')}.",
        rules.adaptive,
    ),
    Claim(
        "Both stages of the look-up are needed",
        "Without key hashing views are over-smooth, without aggregation there are moiré patterns (appendix C.1, "
        "figure 12; by eye)",
        "No number is given.",
        rules.two_stages,
    ),
    Claim(
        "Position is a trade-off",
        '"a larger layer index i ... results in reduced optimization time but slightly diminished visual quality" '
        "(appendix C.3, figure 14)",
        "Follows from the costs: the fewer layers run on a hit, the less it costs.",
        rules.position,
    ),
    Claim(
        "Absolute times",
        '"text-to-3D ... to about 10 minutes and image-to-3D conversion to roughly 30 seconds" (abstract)',
        f"DreamGaussian's 2 m 30 s over 4.0 are {150 / 4.0:.1f} s.",
        not_measured("Needs one RTX A5000 and the real weights."),
    ),
    Claim(
        "People prefer it",
        "52.33 and 56.29 of 100 points against Zero-123 (NeRF) and GaussianDreamer; 44 participants, 12 videos "
        "(figure 7)",
        "No deviation is given.",
        not_measured("No user study was made."),
    ),
    Claim(
        "Objects are smoother and more consistent from view to view",
        '"improves the smoothness and view consistency of the synthesized 3D objects" (abstract)',
        "The paper measures neither.",
        not_measured("Not measured: neither has a number in the paper that could be compared."),
    ),
)
