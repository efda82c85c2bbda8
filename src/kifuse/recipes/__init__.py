"""The papers' settings as configurations to copy: one YAML file per table row, each value with its source.

A recipe is a complete run configuration for T5-large. ``models.yaml`` holds the changes for another model.
``papers.yaml`` says which row of which table a recipe gives, and the published figures. `fill_recipe` inserts
a model, a benchmark and an order by replacing lines. Imports nothing heavy.
"""

from kifuse.recipes.catalog import Paper, PublishedRow, papers, read_recipe, recipe_names, refuse_recipe_name
from kifuse.recipes.filling import Filled, fill_recipe, model_names

__all__ = [
    "Filled",
    "Paper",
    "PublishedRow",
    "fill_recipe",
    "model_names",
    "papers",
    "read_recipe",
    "recipe_names",
    "refuse_recipe_name",
]
