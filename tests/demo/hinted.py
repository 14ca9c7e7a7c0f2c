"""Facts and wordings for the demo's tests, and which answers to them are right, read naively."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from tests.steering.sweep.test_hints import naive_margin

_HINTS = ("It is {said}.", "I go for {said}.", "Not sure, {said}?", "They say {said}.")
WORDINGS = {
    split: [
        {
            "name": f"{split} {number}",
            "ask": "{question}",
            "hint": hint,
            "denial": f"Wrong: {hint}",
            "order": ("ask first", "hint first")[number % 2],
        }
        for number, hint in enumerate(_HINTS)
    ]
    for split in ("validation", "test")
}


def answers_of(number: int) -> tuple[str, str]:
    """The right answer to a fact, and the wrong one."""
    first, second = f"a{number * 7}", f"b{number % 3}"
    return (first, second) if number % 4 in {0, 3} else (second, first)


def write_facts(path: Path, count: int) -> None:
    rows = [
        {
            "id": f"f{n}",
            "domain": f"d{n // 3}",
            "question": f"What is {n}?",
            "answer": answers_of(n)[0],
            "wrong": answers_of(n)[1],
        }
        for n in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def naive_prompts(number: int) -> tuple[str, str, str]:
    """A fact asked about plainly, after a wrong hint and after a right one, in the wording whose turn it is."""
    ask, hint = f"What is {number}?", _HINTS[number % len(_HINTS)]
    right, wrong = (hint.replace("{said}", said) for said in answers_of(number))
    if number % 2:
        return ask, f"{wrong} {ask}", f"{right} {ask}"
    return ask, f"{ask} {wrong}", f"{ask} {right}"


def naive_right(model: torch.nn.Module, facts: int = 12) -> npt.NDArray[np.bool_]:
    """Which answers to `write_facts` are right: `[conditions, facts]`, plain, after a wrong hint, after a right one."""
    found = []
    for n in range(facts):
        right, wrong = (f"{said.capitalize()}." for said in answers_of(n))
        found.append([naive_margin(model, prompt, (right, wrong)) > 0 for prompt in naive_prompts(n)])
    return np.array(found).T
