"""Steering by activations: k times a vector is added to what decoder layers give, at every position.

    one layer     h_l += k * a_l
    all layers    h_l += k * (a_l - a_(l-1)),  a_(-1) = 0

a_l is what `response_difference` gives. Over all layers the additions up to layer l sum to k * a_l, so that each layer's
output moves by about its own difference once, not by all those before it too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from wsmerge.errors import UsageError
from wsmerge.steering.baselines.activations import decoder_layers, hidden_of
from wsmerge.steering.baselines.method import Subject

__all__ = ["ActivationSteering"]


class ActivationSteering:
    """Vectors that are added to the output of decoder layers, times a strength k.

    Args:
        label: how tables and plots name it.
        vectors: what is added to each layer at k = 1, by the layer's number from 0; each `[width]`.
    """

    def __init__(self, label: str, vectors: Mapping[int, torch.Tensor]) -> None:
        self.label = label
        self._vectors = dict(vectors)

    @classmethod
    def at_layer(cls, label: str, differences: torch.Tensor, layer: int) -> ActivationSteering:
        """Add a_l to layer `layer` alone; `differences` is `[layers, width]`.

        Raises:
            UsageError: there is no such layer.
        """
        if not 0 <= layer < len(differences):
            raise UsageError(f"there is no layer {layer}", hint=f"the layers are 0 to {len(differences) - 1}")
        return cls(label, {layer: differences[layer]})

    @classmethod
    def at_all_layers(cls, label: str, differences: torch.Tensor) -> ActivationSteering:
        """Add a_l - a_(l-1) to every layer; `differences` is `[layers, width]`."""
        steps = torch.diff(differences, dim=0, prepend=torch.zeros_like(differences[:1]))
        return cls(label, dict(enumerate(steps)))

    @contextmanager
    def apply(self, subject: Subject, strength: float) -> Iterator[Subject]:
        """The subject with k = `strength`; at 0 no layer is touched.

        Raises:
            UsageError: the model lacks a layer that is steered.
        """
        layers = decoder_layers(subject.model)
        if self._vectors and max(self._vectors) >= len(layers):
            raise UsageError(f"there is no layer {max(self._vectors)}", hint=f"the layers are 0 to {len(layers) - 1}")
        handles = [
            layers[number].register_forward_hook(_adding(strength * vector))
            for number, vector in self._vectors.items()
            if strength != 0
        ]
        try:
            yield subject
        finally:
            for handle in handles:
                handle.remove()


def _adding(vector: torch.Tensor) -> Callable[[torch.nn.Module, Any, Any], Any]:
    def hook(_layer: torch.nn.Module, _inputs: Any, output: Any) -> Any:  # noqa: ANN401 - what layers take and give
        hidden = hidden_of(output)
        moved = hidden + vector.to(hidden)
        return (moved, *output[1:]) if isinstance(output, tuple) else moved

    return hook
