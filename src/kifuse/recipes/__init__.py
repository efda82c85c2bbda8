"""The papers' settings as configurations to copy: one YAML file a table row, each value with its source.

A recipe is a complete run configuration for T5-large; ``models.yaml`` holds what another model changes, and
``papers.yaml`` which row of which table a recipe gives and what was published there. `fill_recipe` puts a
model, a benchmark and an order in, by exchanging lines. Imports nothing heavy.
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
