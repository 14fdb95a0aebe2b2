"""The systems that the paper accelerates (appendix E), each a small file of settings for the one runner."""

from hash3d_cuda.sds.recipes.files import RECIPES, SCALES, Recipe, Stage, load_recipe
from hash3d_cuda.sds.recipes.runs import distil_recipe, generate_recipe, second_for

__all__ = ["RECIPES", "SCALES", "Recipe", "Stage", "distil_recipe", "generate_recipe", "load_recipe", "second_for"]
