"""Pairs of answers, one that shows a behaviour and one that shows its opposite: read, checked, and made.

files      the pair file
trait      the trait file: what to ask a model, and under which system prompts
sampling   the model's answers, each with a seed of its own
journal    what has been made so far, so that a killed run goes on
filters    which answers are dropped, and why
judge      a model or a function that tells how far an answer shows the behaviour
balance    questions held apart, and as many answers of one pole as of the other
making     all of it in order
"""

from __future__ import annotations

from wsmerge.steering.pairs.files import Pair, load_pairs

__all__ = ["Pair", "load_pairs"]
