"""The commands on the local store: what they print, as tables and as JSON, and how they end."""

from __future__ import annotations

import json
import signal
import sys

import pytest

from tests.registry.artifacts import about, make_artifact
from tests.sources import random_direction
from wsmerge.cli import main
from wsmerge.registry import PoleRecord, Store, write_direction


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a command line: exit code, what it printed, and what it said beside."""
    before = signal.getsignal(signal.SIGTERM)

    def run_command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["wsmerge", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    yield run_command
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Artifacts a and b (of one name) and c."""
    folder = tmp_path_factory.mktemp("made")
    make_artifact(folder / "a", description="Writes like a lawyer.")
    make_artifact(folder / "b", seed=2)
    make_artifact(folder / "c", "brief", seed=3)
    return folder


@pytest.fixture
def shelf(made):
    """Two versions of `formal`, and `brief`, in the store of the environment."""
    store = Store()
    store.publish(made / "a", aliases=("good",))
    store.publish(made / "b", version="1.1.0")
    store.publish(made / "c")
    return store


def json_of(result: tuple[int, str, str]):
    code, out, _ = result
    assert code == 0
    return json.loads(out)


def test_publish_says_what_it_stored(run, tmp_path):
    folder = make_artifact(tmp_path / "a")
    found = json_of(run("publish", folder, "--name", "polite", "--alias", "good", "--alias", "best", "--json"))
    assert found["name"] == "polite"
    assert found["aliases"] == ["best", "good", "latest"]
    code, out, _ = run("publish", folder, "--version", "2.0.0")
    assert code == 0
    assert out.startswith("formal@2.0.0: version digest ")


def test_a_version_that_is_taken_is_an_error_that_names_the_next(run, shelf, made):
    code, out, err = run("publish", made / "b")
    assert (code, out) == (1, "")
    assert err.startswith("error: formal@1.0.0 is in the store with digest ")
    assert "--version 1.1.1" in err
    assert len(shelf.list()) == 3


def test_list_and_search(run, shelf):
    assert [entry["version"] for entry in json_of(run("list", "formal", "--json"))] == ["1.0.0", "1.1.0"]
    assert len(json_of(run("list", "--json"))) == len(shelf.list())
    assert [entry["name"] for entry in json_of(run("search", "lawyer", "--json"))] == ["formal"]
    _, out, _ = run("list")
    assert [line.split()[0] for line in out.splitlines()] == [
        "direction",
        "brief@1.0.0",
        "formal@1.0.0",
        "formal@1.1.0",
    ]
    code, out, err = run("search", "nowhere")
    assert (code, out) == (0, "")
    assert "wsmerge list" in err


def test_show(run, shelf, made):
    assert json_of(run("show", "formal@good", "--json"))["description"] == "Writes like a lawyer."
    for reference in ("formal@1.0.0", made / "a"):
        code, out, _ = run("show", reference)
        assert code == 0
        assert shelf.resolve("formal@1.0.0").version_digest in out
        assert "model.layers.1" in out


def test_tag_and_log(run, shelf):
    assert json_of(run("tag", "formal@1.1.0", "good", "--json"))["version"] == "1.1.0"
    assert str(shelf.resolve("formal@good").version) == "1.1.0"
    assert run("tag", "formal", "good", "--delete")[0] == 0
    assert [event["action"] for event in json_of(run("log", "formal", "--json"))] == [
        "publish",
        "tag",
        "publish",
        "tag",
        "untag",
    ]
    assert "untag" in run("log", "formal")[1]


def test_rm_and_gc(run, shelf):
    code, _, err = run("rm", "formal")
    assert code == 2
    assert "which version" in err
    assert json_of(run("rm", "formal@1.1.0", "--json"))["version"] == "1.1.0"
    counted = json_of(run("gc", "--json"))
    assert counted["dry_run"]
    assert counted["freed_bytes"] > 0
    assert run("gc")[2] == "next: wsmerge gc --delete\n"
    deleted = json_of(run("gc", "--delete", "--json"))
    assert deleted["freed_bytes"] == counted["freed_bytes"]
    assert shelf.verify().problems == ()


def test_verify_ends_with_3_where_something_is_wrong(run, shelf, made):
    assert run("verify")[:2] == (0, "all is well: brief@1.0.0, formal@1.0.0, formal@1.1.0\n")
    payload = shelf.resolve("formal@1.0.0").path / "adapter_model.safetensors"
    payload.chmod(0o644)
    payload.write_bytes(payload.read_bytes()[:-1] + b"\0")
    code, out, err = run("verify")
    assert (code, out) == (3, "")
    assert "formal@1.0.0: " in err
    assert run("verify", "formal@1.1.0")[0] == 0
    assert run("verify", made / "a")[0] == 0
    code, out, err = run("verify", "formal@1.0.0", "--json")
    assert (code, len(json.loads(out)["problems"])) == (3, 1)
    assert json.loads(err)["error"]["code"] == "verification"


def test_diff(run, shelf, made):
    found = json_of(run("diff", "formal@1.0.0", "formal@1.1.0", "--json"))
    assert len(found["changed"]) == 4
    assert abs(found["changed"][0]["cosine"]) < 1
    code, out, _ = run("diff", "formal@1.0.0", "formal@1.1.0")
    assert code == 0
    assert "Writes like a lawyer." in out
    assert out.endswith("0 tensors are the same, 4 changed, 0 added, 0 removed\n")
    assert "4 tensors are the same" in run("diff", "formal@1.0.0", made / "a")[1]
    assert shelf.names() == ("brief", "formal")


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (("show", "fromal"), 1, "did you mean formal"),
        (("show", "formal@1"), 2, "all three numbers"),
        (("show", "hub:acme/formal"), 1, "HF_HUB_OFFLINE is set"),
        (("show", "./nowhere"), 1, "is no artifact"),
        (("log", "nothing"), 1, "no direction 'nothing'"),
        (("tag", "formal@9.0.0", "good"), 1, "formal has 1.0.0, 1.1.0"),
        (("publish", "./nowhere"), 1, "is no artifact"),
    ],
)
def test_errors_say_what_to_do_and_print_no_traceback(run, shelf, arguments, code, error):
    ended, out, err = run(*arguments)
    assert (ended, out) == (code, "")
    assert error in err
    assert "Traceback" not in err
    assert shelf.names() == ("brief", "formal")


@pytest.mark.parametrize("command", ["publish", "list", "search", "show", "log", "tag", "rm", "gc", "verify", "diff"])
def test_every_command_has_help_with_an_example(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert f"Example: wsmerge {command}" in " ".join(out.split())


@pytest.mark.parametrize(
    "arguments", [("list",), ("list", "formal"), ("search", "x"), ("verify",), ("gc",), ("log", "formal")]
)
def test_a_store_that_is_a_file(run, tmp_path, arguments):
    file = tmp_path / "file"
    file.write_text("")
    code, out, err = run(*arguments, "--store", file)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {file}: is a file, and a store is a folder\n")
    assert "next: " in err


def test_damaged_versions_are_told_beside_the_others(run, shelf):
    manifest = shelf.resolve("formal@1.0.0").path / "direction.json"
    manifest.chmod(0o644)
    manifest.write_bytes(manifest.read_bytes()[:-1])
    for arguments in (("list",), ("search", "brief"), ("list", "formal")):
        code, out, err = run(*arguments)
        assert code == 1
        assert "brief" in out or "formal@1.1.0" in out
        assert "formal@1.0.0 cannot be read: " in err
        assert err.endswith("; next: wsmerge verify formal@1.0.0\n")
    code, out, _ = run("list", "--json")
    assert (code, len(json.loads(out))) == (1, 2)
    assert run("verify", "formal@1.0.0")[0] == 3


@pytest.mark.usefixtures("shelf")
def test_search_says_what_it_looked_at(run):
    code, out, err = run("search", "--kind", "nope")
    assert (code, out) == (2, "")
    assert "the kinds are contrastive, task_vector, composed, bias_only" in err
    assert "no match among 3 versions" in run("search", "nowhere")[2]


def test_a_damaged_folder_ends_verify_with_3(run, tmp_path):
    folder = make_artifact(tmp_path / "d")
    manifest = folder / "direction.json"
    manifest.write_bytes(manifest.read_bytes()[:-1])
    code, _, err = run("verify", folder)
    assert code == 3
    assert err.count("next:") == 1


def test_diff_prints_poles_field_by_field(run, tmp_path):
    def pole(rank: int, source: str) -> tuple[PoleRecord, ...]:
        return (PoleRecord(pole="plus", source=source, training={"r": rank, "target_modules": ["q", "v"]}),)

    left = make_artifact(tmp_path / "left", poles=pole(4, "acme/one"))
    right = make_artifact(tmp_path / "right", poles=pole(8, "acme/two"))
    code, out, _ = run("diff", left, right)
    assert code == 0
    rows = [line.split() for line in out.splitlines()]
    assert ["poles.plus.source", "acme/one", "acme/two"] in rows
    assert ["poles.plus.training.r", "4", "8"] in rows
    assert "{" not in out
    assert "target_modules" not in out


def test_diff_shows_the_first_tensors_of_many_on_a_terminal_and_all_elsewhere(run, tmp_path, monkeypatch):
    def direction(folder, names: list[str], seed: int):
        with write_direction(folder, random_direction(dict.fromkeys(names, (4, 4)), seed=seed), about()):
            return folder

    shared = [f"model.layers.{number}.a.weight" for number in range(13)]
    extra = [f"model.layers.{number}.b.weight" for number in range(12)]
    left, right = direction(tmp_path / "left", shared, 1), direction(tmp_path / "right", [*shared, *extra], 2)
    code, out, _ = run("diff", left, right)
    assert code == 0
    assert (out.count(".a.weight"), out.count(".b.weight")) == (13, 12)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, out, _ = run("diff", left, right)
    assert "... and 3 more (all with --json)" in out
    assert "... and 2 more (all with --json)" in out
    assert out.count(".a.weight") == out.count(".b.weight") == 10
    found = json_of(run("diff", left, right, "--json"))
    assert (len(found["changed"]), len(found["added"])) == (13, 12)
