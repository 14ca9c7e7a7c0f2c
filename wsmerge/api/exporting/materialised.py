"""One direction as a model: base + w, by an adapter or a checkpoint, in float32.

A method on deltas takes float32(base + w) - base for it, which is w up to half a unit of the base's last float32 place.
"""

from __future__ import annotations

from typing import Any, Final

from wsmerge.api.exporting.parts import Exported
from wsmerge.api.exporting.shop import Shop
from wsmerge.api.exporting.steering import steering_model
from wsmerge.api.recipes import plan
from wsmerge.core.dtypes import F32
from wsmerge.recipe import ModelReference, parse_recipe
from wsmerge.registry import Registry

__all__ = ["DELTA_NOTE", "Materialised"]

DELTA_NOTE: Final = (
    "mergekit takes a direction's delta as float32(base + w) - base, which is w up to half a unit of the base's last float32 "
    "place. In float32 about one element in ten then differs by one or two units of the last place; in 16 bits about one in "
    "ten thousand, by one unit, and with methods that trim also elements next to the threshold"
)


class Materialised:
    """Models that stand for directions, each made once."""

    def __init__(self, shop: Shop, store: Registry | None, exported: Exported) -> None:
        self._shop = shop
        self._store = store
        self._exported = exported
        self._made: dict[tuple[str, str], Any] = {}

    def model(self, direction: str, base: ModelReference) -> Any:  # noqa: ANN401 - text or a mapping
        """What a recipe of mergekit says for `direction` over `base`."""
        key = (direction, str(base))
        if key not in self._made:
            self._made[key] = self._make(direction, base).model_dump(mode="json")
        return self._made[key]

    def _make(self, direction: str, base: ModelReference) -> ModelReference:
        recipe = {
            "base_model": base.model_dump(mode="json"),
            "directions": [{"direction": direction, "weight": 1.0}],
            "out_dtype": F32.recipe_name,
        }
        with plan(parse_recipe(recipe), store=self._store) as planned:
            model, held = steering_model(planned, self._shop, self._store, self._exported)
        self._exported.wide_adapters |= model.lora is not None and held.itemsize < F32.itemsize
        return model
