"""A folder that one process at a time works in."""

import errno
import fcntl

import pytest

import wsmerge
from tests.steering.training.made import write_config
from wsmerge.core.alone import alone_in
from wsmerge.errors import OutputError


def test_a_second_one_is_refused_until_the_first_ends(tmp_path):
    folder = tmp_path / "new" / "out"
    with alone_in(folder):
        with pytest.raises(OutputError, match="another process works in this folder"), alone_in(folder):
            pass
        assert not list(folder.iterdir())
    with alone_in(folder):
        pass


def test_it_is_given_free_when_the_work_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), alone_in(tmp_path):
        raise ZeroDivisionError
    with alone_in(tmp_path):
        pass


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="is no folder"), alone_in(tmp_path / "out"):
        pass


def test_file_systems_without_locks_keep_nobody_out(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with alone_in(tmp_path), alone_in(tmp_path):
        pass


def test_training_and_pairs_hold_their_folders(tmp_path):
    file = write_config(tmp_path / "toy")
    trait = tmp_path / "trait.yaml"
    trait.write_text("{name: toy, behaviour: b, plus: [p], minus: [m], questions: [q]}")
    (tmp_path / "config.json").write_text("{}")
    with alone_in(tmp_path / "out"):
        for call in (
            lambda: wsmerge.train(file, base=tmp_path, out=tmp_path / "out", to=tmp_path / "direction"),
            lambda: wsmerge.make_pairs(trait, tmp_path / "out", model=tmp_path),
        ):
            with pytest.raises(OutputError, match="another process"):
                call()
