"""The journal: a kill loses at most the line it cuts, and another sweep's points are never taken."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsmerge.errors import OutputError, UsageError
from wsmerge.steering.sweep.journal import JOURNAL_FILE, Journal, PointKey
from wsmerge.steering.sweep.samples import Samples

KEYS = [PointKey("m", k, "validation") for k in (-1.0, 0.1, 2.0)] + [PointKey("m", 1.0, "test", 3)]


def figures(seed: int) -> dict[str, Samples]:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(2, 9, size=4).astype(float)
    return {
        "a": Samples.of("behaviour", generator.random(5) < 0.5),
        "p": Samples("perplexity", "perplexity", generator.random(4) * 1e3, tokens),
    }


def written(folder) -> None:
    with Journal(folder, "digest") as journal:
        for number, key in enumerate(KEYS):
            journal.add(key, figures(number))


def test_points_come_back_bit_for_bit(tmp_path):
    written(tmp_path)
    with Journal(tmp_path, "digest") as journal:
        assert list(journal.points) == KEYS
        for number, key in enumerate(KEYS):
            for name, samples in figures(number).items():
                found = journal.points[key][name]
                assert np.array_equal(found.values, samples.values)
                assert np.array_equal(found.tokens, samples.tokens)
                assert (found.role, found.kind) == (samples.role, samples.kind)


@given(share=st.floats(0, 1))
def test_a_cut_anywhere_loses_at_most_the_line_it_cuts(tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("cut")
    written(folder)
    path = folder / JOURNAL_FILE
    data = path.read_bytes()
    cut = int(share * len(data))
    path.write_bytes(data[:cut])
    whole = max(0, data[:cut].count(b"\n") - 1)  # the first line is the digest
    with Journal(folder, "digest") as journal:
        assert list(journal.points) == KEYS[:whole]
        for number, key in list(enumerate(KEYS))[whole:]:
            journal.add(key, figures(number))
    assert path.read_bytes() == data


def noted(folder) -> None:
    with Journal(folder, "digest") as journal:
        journal.add(KEYS[0], figures(0))
        notes = journal.notes(KEYS[1], "a")
        notes.keep_answers(["One.", "Zwei\n\u00e4"], [1])
        notes.keep_score(1, 42.5)
        notes.keep_score(0, 0.0)
        journal.notes(KEYS[1], "p").keep_figures(figures(1))
        journal.notes(KEYS[2], "a").keep_answers(["Another point's."])


def test_notes_of_points_that_are_not_finished_come_back(tmp_path):
    noted(tmp_path)
    with Journal(tmp_path, "digest") as journal:
        assert list(journal.points) == KEYS[:1]
        notes = journal.notes(KEYS[1], "a")
        assert (notes.answers, notes.cut) == (["One.", "Zwei\n\u00e4"], [1])
        assert notes.scores == {1: 42.5, 0: 0.0}
        assert notes.figures is None
        kept = journal.notes(KEYS[1], "p").figures
        assert kept is not None
        for name, samples in figures(1).items():
            assert np.array_equal(kept[name].values, samples.values)
            assert np.array_equal(kept[name].tokens, samples.tokens)
        assert journal.notes(KEYS[2], "a").answers == ["Another point's."]
        assert journal.notes(KEYS[2], "p").answers is None


def test_a_finished_point_needs_no_notes(tmp_path):
    noted(tmp_path)
    with Journal(tmp_path, "digest") as journal:
        journal.add(KEYS[1], {})
        assert journal.notes(KEYS[1], "a").answers is None
    with Journal(tmp_path, "digest") as journal:
        assert journal.points[KEYS[1]] == {}
        assert journal.notes(KEYS[1], "a").answers is None
        assert journal.notes(KEYS[2], "a").answers == ["Another point's."]


@given(share=st.floats(0, 1))
def test_a_cut_anywhere_loses_at_most_the_note_it_cuts(tmp_path_factory, share):
    folder = tmp_path_factory.mktemp("cut")
    noted(folder)
    path = folder / JOURNAL_FILE
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    whole = data[: int(share * len(data))].count(b"\n")
    with Journal(folder, "digest") as journal:
        notes = journal.notes(KEYS[1], "a")
        assert (len(journal.points), notes.answers is not None, len(notes.scores)) == (
            int(whole >= 2),
            whole >= 3,
            max(0, min(whole, 5) - 3),
        )
        assert (journal.notes(KEYS[1], "p").figures is not None) == (whole >= 6)


def test_items_without_a_value_come_back(tmp_path):
    samples = Samples.of("behaviour", [0.5, float("nan"), 1.0])
    with Journal(tmp_path, "digest") as journal:
        journal.add(KEYS[0], {"a": samples})
    assert "NaN" not in (tmp_path / JOURNAL_FILE).read_text()
    with Journal(tmp_path, "digest") as journal:
        found = journal.points[KEYS[0]]["a"]
    assert np.array_equal(found.values, samples.values, equal_nan=True)
    assert found.interval.value == 0.75
    other = Samples.of("behaviour", [0.25, 0.5, float("nan")])
    assert found.change_from(other).value == 0.25


def test_another_sweep_is_refused_and_restart_begins_anew(tmp_path):
    written(tmp_path)
    with pytest.raises(UsageError, match="another sweep"):
        Journal(tmp_path, "other")
    with Journal(tmp_path, "other", restart=True) as journal:
        assert not journal.points
    assert json.loads((tmp_path / JOURNAL_FILE).read_text()) == {"sweep": "other"}


def test_a_damaged_journal_is_told(tmp_path):
    written(tmp_path)
    path = tmp_path / JOURNAL_FILE
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], lines[1][:-20], *lines[2:], ""]))
    with pytest.raises(OutputError, match="damaged"):
        Journal(tmp_path, "digest")


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        Journal(tmp_path / "file", "digest")
