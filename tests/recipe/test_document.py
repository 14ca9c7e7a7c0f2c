"""YAML as it is read, whoever wrote it."""

from __future__ import annotations

import pytest

from wsmerge.recipe.document import read_value


@pytest.mark.parametrize("number", ["0x" + "f" * 5000, "0" + "7" * 6000, "0b" + "1" * 20_000, "9" * 5000])
def test_numbers_that_python_cannot_show_stay_text(number):
    """Messages quote them, and Python shows integers of 4,300 digits at most."""
    assert read_value(f"a: {number}", "made") == {"a": number}


@pytest.mark.parametrize(("text", "number"), [("0xff", 255), ("017", 15), ("0b11", 3), ("9" * 40, 10**40 - 1)])
def test_other_numbers_are_numbers(text, number):
    assert read_value(f"a: {text}", "made") == {"a": number}
