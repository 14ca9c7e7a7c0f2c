"""The order in which mergekit merges: by stored name, what has none first."""

from wsmerge.engine.merging.schedule import Drawing, Load, draw_order


def drawing(*names, permuted=False):
    return Drawing(tuple(Load(f"model{number}", name, name) for number, name in enumerate(names)), permuted)


def test_names_decide():
    assert draw_order([drawing("b", "b"), drawing("layers.10"), drawing("layers.9"), drawing("a")]) == [3, 0, 1, 2]


def test_the_last_name_of_several_counts():
    assert draw_order([drawing("a", "z"), drawing("c", "c"), drawing("y", "b")]) == [1, 2, 0]


def test_what_is_made_of_several_tensors_comes_first():
    made = Drawing((Load("model0", "experts"), Load("model1", "experts")))
    assert draw_order([drawing("a"), made, drawing("b")]) == [1, 0, 2]


def test_rows_that_a_tokenizer_moves_keep_their_place():
    assert draw_order([drawing("embed", permuted=True), drawing("a"), drawing("lm_head", permuted=True)]) == [1, 0, 2]


def test_every_tensor_is_merged_once_where_several_are_made_of_the_same():
    same = [drawing("layers.1", "layers.1") for _ in range(40)]
    assert sorted(draw_order([*same, drawing("layers.0")])) == list(range(41))
    assert draw_order([*same, drawing("layers.0")])[0] == 40
