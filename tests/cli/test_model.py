"""`wsmerge model`: where the embedded model lies."""

import json

from wsmerge.engine.locate import ORIGIN_FILE
from wsmerge.steering import embedded


def test_the_model_that_is_there_is_named(tmp_path, wsmerge):
    folder = tmp_path / "SmolLM2-135M-Instruct"
    folder.mkdir()
    (folder / ORIGIN_FILE).write_text(json.dumps(embedded._ORIGIN))
    assert wsmerge("model", "smollm2", "--cache", tmp_path).out == f"{folder}\n"
    assert wsmerge("model", "--out", folder).out == f"{folder}\n"
    told = json.loads(wsmerge("model", "smollm2", "--cache", tmp_path, "--json").out)
    assert told == {"path": str(folder), "model": embedded.EMBEDDED_MODEL}


def test_what_cannot_be_made_is_refused(tmp_path, wsmerge):
    done = wsmerge("model", "gpt-5", "--cache", tmp_path)
    assert done.code == 2
    assert "there is smollm2" in done.err
    (tmp_path / "notes.txt").write_text("mine")
    done = wsmerge("model", "smollm2", "--out", tmp_path)
    assert done.code == 1
    assert "choose another folder" in done.err
