"""Inner products of every kind of delta against dense float64 ones."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import llama_shapes
from tests.oracles.similarity import dense_of, flat, reference
from tests.sources import MemoryDirection, identity, random_direction
from tests.steering.similarity.made import directions
from wsmerge.core.deltas import DenseDelta, LowRankDelta
from wsmerge.core.layers import layer_position, module_of
from wsmerge.errors import BaseMismatchError, NonFiniteError
from wsmerge.steering.similarity import factors, products
from wsmerge.steering.similarity.groups import NO_LAYER, is_embedding
from wsmerge.steering.similarity.matrix import similarity_matrix
from wsmerge.steering.similarity.products import inner_products
from wsmerge.steering.similarity.vectors import lay_together

SHAPES = llama_shapes()


def all_pairs(count):
    return [(one, other) for one in range(count) for other in range(one, count)]


@pytest.mark.parametrize("block", [1, 7, 100, products.BLOCK_ELEMENTS])
def test_every_pair_by_tensor(monkeypatch, block):
    monkeypatch.setattr(products, "BLOCK_ELEMENTS", block)
    sources = directions()
    gram = inner_products(lay_together(sources), all_pairs(len(sources)), threads=3)
    dense = [dense_of(source) for source in sources]
    assert set(gram.names) == set().union(*(item.keys() for item in dense))
    for number, name in enumerate(gram.names):
        for one, other in itertools.product(range(len(sources)), repeat=2):
            if name in dense[one] and name in dense[other]:
                wanted = float(np.sum(dense[one][name] * dense[other][name]))
                norms = float(np.linalg.norm(dense[one][name]) * np.linalg.norm(dense[other][name]))
                assert gram.values[number, one, other] == pytest.approx(wanted, abs=1e-6 * norms)
            else:
                assert gram.values[number, one, other] == 0


def test_factors_in_groups_are_as_factors_at_once(monkeypatch):
    sources = directions()
    whole = inner_products(lay_together(sources), all_pairs(len(sources)))
    monkeypatch.setattr(factors, "MAX_COLUMNS", 5)
    parts = inner_products(lay_together(sources), all_pairs(len(sources)))
    np.testing.assert_allclose(parts.values, whole.values, rtol=0, atol=1e-6 * whole.values.max())


def test_threads_do_not_matter():
    sources = directions()
    one, four = (
        inner_products(lay_together(sources), all_pairs(len(sources)), threads=threads).values for threads in (1, 4)
    )
    np.testing.assert_array_equal(one, four)


def test_only_the_wanted_pairs():
    sources = directions()
    gram = inner_products(lay_together(sources), [(0, 3), (0, 0)])
    assert np.flatnonzero(gram.values.any(axis=0)).tolist() == [0, 3, 12]


def test_scopes_and_their_sums():
    sources = directions()
    matrix = similarity_matrix(sources)
    dense = [dense_of(source) for source in sources]
    for (one, other), scopes in matrix.pairs.items():
        keeps = {
            "all": lambda _: True,
            "without embeddings": lambda name: name != "model.embed_tokens.weight",
            "layer model.layers.1": lambda name: ".layers.1." in name,
            "module mlp.down_proj": lambda name: "mlp.down_proj" in name,
            "module embed_tokens": lambda name: "embed_tokens" in name,
        }
        for scope, keep in keeps.items():
            found, wanted = (
                scopes.named()[scope],
                reference(dense[one], dense[other], SHAPES, keep, sources[other].rank),
            )
            assert found.inner == pytest.approx(
                wanted["inner"], abs=1e-6 * wanted["update_norm"] * wanted["direction_norm"]
            )
            assert found.update_norm == pytest.approx(wanted["update_norm"], rel=1e-6)
            assert found.direction_norm == pytest.approx(wanted["direction_norm"], rel=1e-6)
            assert found.null_std == pytest.approx(wanted["null_std"], rel=1e-5)
            assert found.isotropic_std == pytest.approx(wanted["isotropic_std"], rel=1e-6)
            if found.cosine is not None:
                assert found.cosine == pytest.approx(wanted["cosine"], abs=1e-6)
            else:
                assert np.isnan(wanted["cosine"])
        for parts in (scopes.layers, scopes.modules):
            assert sum(part.inner for part in parts.values()) == pytest.approx(scopes.whole.inner, rel=1e-9, abs=1e-12)
            squares = sum(part.update_norm**2 for part in parts.values())
            assert squares == pytest.approx(scopes.whole.update_norm**2, rel=1e-9)


def test_layers_stand_in_the_order_of_their_numbers():
    shapes = {f"model.layers.{number}.mlp.up_proj.weight": (4, 3) for number in (10, 2, 0)} | {"lm_head.weight": (5, 3)}
    layers = similarity_matrix([random_direction(shapes)]).pairs[0, 0].layers
    assert list(layers) == ["model.layers.0", "model.layers.2", "model.layers.10", NO_LAYER]


def test_poles_that_nearly_cancel():
    """The factors of w are large and w is small: [B | -(B + e)] [A; A + e]."""
    generator = np.random.default_rng(0)
    sources = []
    for number in range(2):
        b, a = generator.standard_normal((300, 8)), generator.standard_normal((8, 200))
        near_b, near_a = (item + 1e-2 * generator.standard_normal(item.shape) for item in (b, a))
        delta = LowRankDelta(np.hstack([b, -near_b]).astype(np.float32), np.vstack([a, near_a]).astype(np.float32))
        sources.append(MemoryDirection({"x.weight": delta}, identity({"x.weight": (300, 200)}), label=str(number)))
    update = {"x.weight": DenseDelta((sources[0].deltas["x.weight"].dense() * 1e-3).astype(np.float32))}
    sources.append(MemoryDirection(update, identity({"x.weight": (300, 200)}), label="update"))
    cosines = similarity_matrix(sources).cosines()
    dense = [flat(dense_of(source), ["x.weight"], {"x.weight": (300, 200)}) for source in sources]
    for one, other in itertools.product(range(3), repeat=2):
        wanted = dense[one] @ dense[other] / np.linalg.norm(dense[one]) / np.linalg.norm(dense[other])
        assert cosines[one, other] == pytest.approx(wanted, abs=1e-6)


@given(
    st.integers(1, 9), st.integers(1, 9), st.integers(1, 5), st.integers(0, 2**16), st.sampled_from([1e-8, 1.0, 1e8])
)
def test_any_shape_and_scale(rows, columns, rank, seed, scale):
    shapes = {"a.weight": (rows, columns)}
    sources = [
        random_direction(shapes, rank=rank, seed=seed, scale=scale),
        random_direction(shapes, rank=None, seed=seed + 1, scale=scale),
    ]
    found = similarity_matrix(sources).pairs[0, 1].whole
    wanted = reference(dense_of(sources[0]), dense_of(sources[1]), shapes)
    assert found.inner == pytest.approx(wanted["inner"], abs=1e-6 * found.update_norm * found.direction_norm)
    assert found.update_norm == pytest.approx(wanted["update_norm"], rel=1e-5)


def test_deltas_of_any_number_of_axes():
    generator = np.random.default_rng(0)
    shapes = {"norm.weight": (7,), "scale": (), "conv.weight": (3, 2, 2)}
    deltas = {name: DenseDelta(generator.standard_normal(shape).astype(np.float32)) for name, shape in shapes.items()}
    source = MemoryDirection(deltas, identity(shapes))
    found = similarity_matrix([source]).pairs[0, 0].whole
    assert found.update_norm == pytest.approx(np.sqrt(sum((item.dense() ** 2).sum() for item in deltas.values())))


def test_tied_tensors_count_once():
    shapes = {"model.embed_tokens.weight": (6, 4), "lm_head.weight": (6, 4)}
    delta = DenseDelta(np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32))
    tied = {"lm_head.weight": "model.embed_tokens.weight"}
    both = MemoryDirection(dict.fromkeys(shapes, delta), identity(shapes, tied=tied))
    assert similarity_matrix([both]).norms()[0] == pytest.approx(delta.norm())
    untied = MemoryDirection(dict.fromkeys(shapes, delta), identity(shapes))
    assert similarity_matrix([untied]).norms()[0] == pytest.approx(delta.norm() * np.sqrt(2))


def test_zero_has_no_cosine():
    zero = MemoryDirection({"a.weight": DenseDelta(np.zeros((3, 2), np.float32))}, identity({"a.weight": (3, 2)}))
    one = random_direction({"a.weight": (3, 2)})
    matrix = similarity_matrix([zero, one])
    assert np.isnan(matrix.cosines()[0]).all()
    assert matrix.to_dict()["scopes"]["all"]["cosines"][0] == [None, None]
    assert matrix.pairs[0, 1].whole.projection == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_no_numbers(bad):
    values = np.ones((3, 2), np.float32)
    values[1, 1] = bad
    broken = MemoryDirection({"a.weight": DenseDelta(values)}, identity({"a.weight": (3, 2)}), label="broken")
    with pytest.raises(NonFiniteError) as caught:
        similarity_matrix([random_direction({"a.weight": (3, 2)}), broken])
    assert caught.value.details == ("a.weight: broken",)


def test_what_does_not_fit_together():
    one = random_direction({"a.weight": (3, 2), "b.weight": (3, 2)}, label="one")
    other = random_direction({"a.weight": (2, 3), "b.weight": (3, 3)}, label="other")
    with pytest.raises(BaseMismatchError) as caught:
        similarity_matrix([one, other])
    assert len(caught.value.details) == 2
    with pytest.raises(BaseMismatchError, match="share no tensor"):
        similarity_matrix([one, random_direction({"c.weight": (2, 3)})])


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("model.embed_tokens.weight", True),
        ("lm_head.weight", True),
        ("transformer.wte.weight", True),
        ("model.layers.0.self_attn.q_proj.weight", False),
        ("model.norm.weight", False),
        ("vision.blocks.0.shared.weight", False),
    ],
)
def test_what_an_embedding_is(name, expected):
    assert is_embedding(name) is expected
    assert module_of(name)
    assert not (expected and layer_position(name))
