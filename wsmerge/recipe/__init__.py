"""Recipes: what they say, and the coefficient that it comes to for each tensor. Reads recipe files and nothing else."""

from wsmerge.recipe.chain import intermediate, model_references, ordered, referenced_models
from wsmerge.recipe.coefficients import Applied, Coefficients, coefficients_for, gradient_at, recipe_coefficients
from wsmerge.recipe.findings import Finding
from wsmerge.recipe.groups import Group, Input, groups_of
from wsmerge.recipe.lint import lint_recipe
from wsmerge.recipe.load import LoadedRecipe, load_recipe, load_recipes, parse_recipe, parse_recipes, weight_from
from wsmerge.recipe.merging import (
    Conditional,
    InputModel,
    InputSlice,
    ModelPath,
    ModelReference,
    ModelToken,
    OutputModule,
    OutputSlice,
    Parameters,
    Setting,
    TokenizerSettings,
    TokenSettings,
    ZeroToken,
)
from wsmerge.recipe.methods import METHODS, Method, Parameter, method_named
from wsmerge.recipe.schema import DirectionEntry, Recipe, Rule, Weight, layer_ranges, rules_of
from wsmerge.recipe.settings import evaluate, resolve
from wsmerge.recipe.table import Row, coefficient_table

__all__ = [
    "METHODS",
    "Applied",
    "Coefficients",
    "Conditional",
    "DirectionEntry",
    "Finding",
    "Group",
    "Input",
    "InputModel",
    "InputSlice",
    "LoadedRecipe",
    "Method",
    "ModelPath",
    "ModelReference",
    "ModelToken",
    "OutputModule",
    "OutputSlice",
    "Parameter",
    "Parameters",
    "Recipe",
    "Row",
    "Rule",
    "Setting",
    "TokenSettings",
    "TokenizerSettings",
    "Weight",
    "ZeroToken",
    "coefficient_table",
    "coefficients_for",
    "evaluate",
    "gradient_at",
    "groups_of",
    "intermediate",
    "layer_ranges",
    "lint_recipe",
    "load_recipe",
    "load_recipes",
    "method_named",
    "model_references",
    "ordered",
    "parse_recipe",
    "parse_recipes",
    "recipe_coefficients",
    "referenced_models",
    "resolve",
    "rules_of",
    "weight_from",
]
