from collections.abc import Sequence
from typing import Any

from tests.builders import llama_shapes
from wsmerge.recipe import Applied, Coefficients, Row, coefficient_table, coefficients_for, weight_from

BASE = tuple(llama_shapes(layers=6, tied=False))
LINEAR = tuple(name for name in BASE if "_proj" in name)


def rows_of(weight: Any, tensors: Sequence[str] = LINEAR) -> list[tuple[str, tuple[str, ...], int, float, str]]:
    table = coefficient_table(coefficients_for(weight_from(weight), tensors, BASE))
    return [(row.layers, row.modules, row.tensors, row.k, row.rule) for row in table]


def test_one_number_is_one_row():
    assert coefficient_table(coefficients_for(2.0, LINEAR, BASE)) == (
        Row("model.layers", "0-5", ("all",), 42, 2.0, "weight"),
    )


def test_equal_neighbours_are_one_row_and_what_nothing_matches_is_shown():
    assert rows_of([{"filter": "self_attn", "value": 1}, {"layers": "1-2", "value": 2}]) == [
        ("0", ("self_attn",), 4, 1, "weight[0]: filter self_attn"),
        ("0", ("mlp",), 3, 0, "unmatched"),
        ("1-2", ("self_attn",), 8, 1, "weight[0]: filter self_attn"),
        ("1-2", ("mlp",), 6, 2, "weight[1]: layers 1-2"),
        ("3-5", ("self_attn",), 12, 1, "weight[0]: filter self_attn"),
        ("3-5", ("mlp",), 9, 0, "unmatched"),
    ]


def test_a_gradient_has_a_row_a_layer():
    assert [(layers, k) for layers, _, _, k, _ in rows_of([0, 5])] == [(str(layer), layer) for layer in range(6)]


def test_layers_that_the_direction_lacks_split_a_row():
    tensors = [name for name in LINEAR if ".2." not in name]
    assert [row[0] for row in rows_of(1, tensors)] == ["0-1", "3-5"]


def test_tensors_of_no_layer_come_first_by_name():
    rows = rows_of([{"filter": "lm_head", "value": 1}, {"value": 2}], BASE)
    assert [row[:4] for row in rows] == [
        ("", ("embed_tokens", "norm"), 2, 2),
        ("", ("lm_head",), 1, 1),
        ("0-5", ("all",), 54, 2),
    ]


def test_modules_that_are_not_whole_are_named_one_by_one():
    rows = rows_of([{"filter": "q_proj", "value": 1}, {"filter": "up_proj", "value": 1}, {"value": 2}])
    assert [row[1] for row in rows] == [
        ("self_attn.q_proj",),
        ("mlp.down_proj", "mlp.gate_proj", "self_attn.k_proj", "self_attn.o_proj", "self_attn.v_proj"),
        ("mlp.up_proj",),
    ]


def test_parameters_of_one_module_that_differ_are_named():
    table = coefficient_table(
        Coefficients({"h.0.fc.weight": Applied(1.0, "weight[1]: all"), "h.0.fc.bias": Applied(0.0, "unmatched")})
    )
    assert [(row.stack, row.modules, row.k) for row in table] == [("h", ("fc.weight",), 1.0), ("h", ("fc.bias",), 0.0)]


def test_every_tensor_is_in_one_row():
    table = coefficient_table(coefficients_for(weight_from([{"filter": "q_proj", "value": 1}]), BASE, BASE))
    assert sum(row.tensors for row in table) == len(BASE)
