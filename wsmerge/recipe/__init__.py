"""Recipes: what they say, and the coefficient that it comes to for each tensor. Reads recipe files and nothing else."""

from wsmerge.recipe.coefficients import Applied, Coefficients, coefficients_for, gradient_at, recipe_coefficients
from wsmerge.recipe.load import LoadedRecipe, load_recipe, parse_recipe, weight_from
from wsmerge.recipe.schema import DirectionEntry, Recipe, Rule, Weight, layer_ranges, rules_of
from wsmerge.recipe.table import Row, coefficient_table

__all__ = [
    "Applied",
    "Coefficients",
    "DirectionEntry",
    "LoadedRecipe",
    "Recipe",
    "Row",
    "Rule",
    "Weight",
    "coefficient_table",
    "coefficients_for",
    "gradient_at",
    "layer_ranges",
    "load_recipe",
    "parse_recipe",
    "recipe_coefficients",
    "rules_of",
    "weight_from",
]
