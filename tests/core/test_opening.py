"""Opening files of strangers: what is no file, links that leave the folder, sizes, and JSON that cannot be."""

from __future__ import annotations

import json
import os
import socket

import pytest

from wsmerge.core.opening import expanded, is_below, open_regular, parse_json, place_outside, read_whole
from wsmerge.core.ranges import LocalFile
from wsmerge.errors import TensorFileError


def make_fifo(path):
    os.mkfifo(path)


def make_socket(path):
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


def make_device(path):
    path.symlink_to("/dev/zero")


def make_folder(path):
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (make_fifo, "a FIFO and no regular file"),
        (make_socket, "a socket and no regular file"),
        (make_device, "a device and no regular file"),
        (make_folder, "Is a directory"),
    ],
)
def test_what_is_no_regular_file_is_refused_without_waiting(tmp_path, make, told):
    path = tmp_path / "config.json"
    make(path)
    with pytest.raises(OSError, match=told):
        open_regular(path)
    with pytest.raises(TensorFileError, match=told):
        LocalFile(path)


def test_what_is_read_whole_has_a_limit(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"x" * 100)
    assert read_whole(path, limit=100) == b"x" * 100
    with pytest.raises(OSError, match="more than the 99 bytes"):
        read_whole(path, limit=99)


def test_links_may_not_leave_the_folder(tmp_path):
    folder, private = tmp_path / "disk" / "model", tmp_path / "id_rsa"
    (folder / "below").mkdir(parents=True)
    private.write_text("secret")
    (folder / "config.json").write_text("{}")
    (folder / "same.json").symlink_to("config.json")
    (folder / "out.json").symlink_to(private)
    (folder / "chain.json").symlink_to("out.json")
    (folder / "up").symlink_to(tmp_path)
    (tmp_path / "named").symlink_to(folder)  # the folder itself may be a link
    for root in (folder, tmp_path / "named"):
        assert read_whole(root / "same.json", within=root) == b"{}"
        for name in ("out.json", "chain.json", "up/id_rsa"):
            assert place_outside(root / name, root) == private
            with pytest.raises(OSError, match="a link out of its folder"):
                read_whole(root / name, within=root)
        with pytest.raises(OSError, match="a link out of its folder"):
            read_whole(root / "below" / ".." / "out.json", within=root)


def test_a_snapshot_of_the_hubs_cache_links_to_its_own_blobs(tmp_path):
    repository = tmp_path / "hub" / "models--acme--base"
    snapshot = repository / "snapshots" / "c0ffee"
    other = tmp_path / "hub" / "models--acme--private" / "blobs"
    for folder in (snapshot / "below", repository / "blobs", other):
        folder.mkdir(parents=True)
    (repository / "blobs" / "abc").write_text("{}")
    (other / "def").write_text("secret")
    (snapshot / "config.json").symlink_to("../../blobs/abc")
    (snapshot / "below" / "config.json").symlink_to("../../../blobs/abc")
    (snapshot / "stolen.json").symlink_to("../../../models--acme--private/blobs/def")
    (repository / "blobs" / "link").symlink_to(other / "def")
    (snapshot / "chained.json").symlink_to("../../blobs/link")
    assert read_whole(snapshot / "config.json", within=snapshot) == b"{}"
    assert read_whole(snapshot / "below" / "config.json", within=snapshot) == b"{}"
    for name in ("stolen.json", "chained.json"):
        with pytest.raises(OSError, match="a link out of its folder"):
            read_whole(snapshot / name, within=snapshot)


@pytest.mark.parametrize(
    ("name", "below"),
    [
        ("a", True),
        ("a/b.json", True),
        ("..a/b..", True),
        ("", False),
        (".", False),
        ("..", False),
        ("/a", False),
        ("a/../../b", False),
        ("a/..", False),
        ("a\\b", False),
        ("a\0b", False),
        ("a//b", False),
        ("./a", False),
    ],
)
def test_names_that_stay_below_a_folder(name, below):
    assert is_below(name) is below


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000 + "]" * 200_000,
        '{"a": 1' + "0" * 400 + "}",
        "1" * 10_000,
        '{"\\ud800": 1}',
        '["\\uDFFF"]',
        "{",
        b"\xff",
    ],
    ids=["deep", "400 digits", "10000 digits", "surrogate key", "surrogate text", "torn", "no UTF-8"],
)
def test_json_that_cannot_be_is_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        parse_json(text)


def test_json_that_can_be():
    value = {"a": [1, 10**30, 0.5, None, "\U0001f600 \\ud800"], "b": float("inf")}
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


def test_a_user_that_is_not_there_is_no_error():
    assert str(expanded("~no-such-user/x")) == "~no-such-user/x"
    assert expanded("~") == expanded(os.environ["HOME"])
