"""Weight steering and what it is compared with, behind one interface: `method.apply(subject, strength)`.

    weights       theta + k * w: contrastive directions, one-sided fine-tunes, joint training, bias-only
    prompts       a system prompt for the behaviour or against it
    activations   what a model's layers hold while it reads answers
    first_token   k times a bias on the logits of an answer's first token
    hooks         k times a difference of activations, added to what one layer or every layer gives

A strength is signed: above 0 for more of the behaviour, below 0 for less.
"""

from __future__ import annotations

from wsmerge.steering.baselines.activations import decoder_layers, response_difference
from wsmerge.steering.baselines.first_token import FirstTokenBias
from wsmerge.steering.baselines.hooks import ActivationSteering
from wsmerge.steering.baselines.method import Method, Subject
from wsmerge.steering.baselines.prompts import SystemPrompt
from wsmerge.steering.baselines.weights import WeightSteering

__all__ = [
    "ActivationSteering",
    "FirstTokenBias",
    "Method",
    "Subject",
    "SystemPrompt",
    "WeightSteering",
    "decoder_layers",
    "response_difference",
]
