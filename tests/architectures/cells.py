"""One recipe on one class of transformers: through wsmerge and through live mergekit, and judged by loading the results.

    same       the tensors of mergekit, bit for bit, and mergekit's result is sound
    loads      loads without missing or unexpected keys, with the right values; mergekit refuses, or its result is not sound
    refused    wsmerge refuses in words, before anything is written
    fault      anything else: what wsmerge wrote does not load, or has other values; or an error that is no refusal

Values are judged in memory, where the class holds them: of an identity those of the source, of a stack those of the layer
that the recipe puts there (with the same kind of layer around them), of a linear merge a weighted mean in float64.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
import transformers
import yaml
from torch import nn

import wsmerge
from tests.mergekit.models import fine_tune
from tests.mergekit.oracle import read_tensors, run_mergekit
from wsmerge.engine.architecture import architecture_of
from wsmerge.engine.architecture.live import inferred
from wsmerge.engine.checkpoint import Checkpoint
from wsmerge.engine.plan import PlanOptions

__all__ = ["MERGES", "RECIPES", "Case", "Cell", "Sources", "UnsoundError", "asked_once", "judge"]

MERGES: Final = ("identity", "linear", "slerp", "ties")
RECIPES: Final = (*MERGES, "stack", "cut", "shift")
_WEIGHTS: Final = (0.3, 0.7)
_ROUNDED: Final = 2.0**-8
"""Relative error of a result that is rounded to bfloat16 once, twice over."""


class Cell(NamedTuple):
    """What came of one recipe: an outcome as above, why, and what mergekit does."""

    outcome: str
    reason: str
    mergekit: str


class _Loaded(NamedTuple):
    model: nn.Module
    tensors: Mapping[str, torch.Tensor]
    keys: Mapping[str, Sequence[str]]


class UnsoundError(Exception):
    """A checkpoint that loads with missing or unexpected keys, or with other values than it should have."""


@dataclass(frozen=True, slots=True)
class Sources:
    """The checkpoints of one class.

    Attributes:
        name: the class.
        base: a model, as transformers saves it.
        tuned: two fine-tunes of it.
        base_loaded: what transformers loads of the base.
        tuned_loaded: and of the first fine-tune.
    """

    name: str
    base: Path
    tuned: tuple[Path, Path]
    base_loaded: _Loaded
    tuned_loaded: _Loaded
    _counts: dict[bool, dict[str, int]] = field(default_factory=dict)

    def counts(self, *, mergekits: bool) -> Mapping[str, int]:
        """The number of layers of each module, by the names that wsmerge or mergekit has for them."""
        if mergekits not in self._counts:
            checkpoint = Checkpoint(self.base)
            try:
                with _quietly():
                    architecture = architecture_of([checkpoint])
                    if mergekits and architecture.is_inferred:
                        architecture = inferred(self.name, [checkpoint], checkpoint)
                    modules = architecture.modules.items()
                    self._counts[mergekits] = {name: module.num_layers(checkpoint.config) for name, module in modules}
            finally:
                checkpoint.close()
        return self._counts[mergekits]

    @classmethod
    def of(cls, name: str, model: Any, folder: Path) -> Sources:
        """Save `model` and fine-tunes of it under `folder`, and load them back.

        Raises:
            UnsoundError: transformers does not load what it saves itself.
        """
        base = folder / "base"
        with _quietly():
            model.save_pretrained(base)
        tuned = fine_tune(base, folder / "one", seed=101), fine_tune(base, folder / "two", seed=102)
        saved = {key: value.clone() for key, value in model.state_dict().items()}
        found = cls(name, base, tuned, _load(name, base), _load(name, tuned[0]))
        lost = [key for key in saved if key not in found.base_loaded.tensors]
        wrong = [
            key
            for key, value in found.base_loaded.tensors.items()
            if key in saved and not _equal(value, saved[key].to(value.dtype))  # some stay in float32
        ]
        _refuse(
            sorted({*lost, *wrong} - set(found.base_loaded.keys["missing_keys"])), "change when it is saved and loaded"
        )
        return found


def judge(sources: Sources, recipe: str, folder: Path, *, theirs_too: bool = True) -> Cell:
    """Merge by `recipe` with both, or with wsmerge alone, and compare."""
    made = Case(sources, recipe)
    if made.leaves_all:
        return Cell("none", "", "not run")
    ours, theirs = folder / "ours", folder / "theirs"
    for path in (ours, theirs):
        shutil.rmtree(path, ignore_errors=True)
    try:
        text = made.text()
        with _quietly():
            wsmerge.merge(text, ours, settings=wsmerge.Settings(options=PlanOptions(threads=1)))
        refusal = None
    except wsmerge.WsmergeError as error:
        refusal = _words(error, folder)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is no refusal
        return Cell("fault", f"{type(error).__name__}: {_plain(str(error), folder)}", "")
    mergekit = _mergekit(made, theirs, folder) if theirs_too else "not run"
    if refusal is not None:
        if ours.exists():
            return Cell("fault", "refused and written", mergekit)
        return Cell("refused", refusal, mergekit or _soundness(made, theirs)[0])
    return _compared(made, ours, theirs, mergekit)


def _compared(made: Case, ours: Path, theirs: Path, mergekit: str) -> Cell:
    """`mergekit` says why it gave nothing, empty where it did."""
    try:
        _check_account(made, ours)
        loaded = made.check(ours)
    except UnsoundError as error:
        return Cell("fault", str(error), mergekit or _soundness(made, theirs)[0])
    stored_equal = not mergekit and _stored_equal(ours, theirs)
    if stored_equal and made.keeps_configuration:
        return Cell("same", "", "sound")
    mergekit, sound = (mergekit, None) if mergekit else _soundness(made, theirs)
    if sound is None:
        return Cell("loads", "", mergekit)
    differing = [key for key, value in loaded.tensors.items() if not _equal(value, sound.tensors.get(key))]
    if differing:
        return Cell("fault", f"{len(differing)} tensors are not mergekit's: {differing[0]}", mergekit)
    return Cell("same", "" if stored_equal else "stored in another layout", mergekit)


class Case:
    """A recipe over the sources, and what its result has to be."""

    def __init__(self, sources: Sources, name: str) -> None:
        self._sources = sources
        self._name = name
        self._ranges = _RANGES.get(name, _cut)
        self.folder = sources.base.parent
        self.is_sliced = name in _RANGES

    @property
    def keeps_configuration(self) -> bool:
        """Whether the result has the configuration of its sources."""
        return self._name in MERGES

    @property
    def leaves_all(self) -> bool:
        """Whether it would leave out a layer where there is one only."""
        return self._name in {"cut", "shift"} and max(self._sources.counts(mergekits=False).values(), default=0) == 1

    def text(self, *, mergekits: bool = False) -> str:
        """The recipe, for mergekit on request; modules with the most layers are sliced alike, the others taken whole."""
        base, (one, two) = str(self._sources.base), map(str, self._sources.tuned)
        weighted = [
            {"model": model, "parameters": {"weight": w}} for model, w in zip((base, one), _WEIGHTS, strict=True)
        ]
        parts: Mapping[str, Mapping[str, Any]] = {
            "identity": {"merge_method": "passthrough", "models": [{"model": base}]},
            "linear": {"merge_method": "linear", "models": weighted},
            "slerp": {
                "merge_method": "slerp",
                "base_model": base,
                "models": [{"model": base}, {"model": one}],
                "parameters": {"t": 0.35},
            },
            "ties": {
                "merge_method": "ties",
                "base_model": base,
                "models": [{"model": path, "parameters": {"weight": 0.6, "density": 1.0}} for path in (one, two)],
            },
        }
        return yaml.safe_dump(
            parts[self._name] if self._name in parts else self._sliced(base, mergekits=mergekits), sort_keys=False
        )

    def _sliced(self, base: str, *, mergekits: bool) -> Mapping[str, Any]:
        counts = self._sources.counts(mergekits=mergekits)

        def slices(count: int) -> dict[str, Any]:
            ranges = self._ranges(count)
            return {"slices": [{"sources": [{"model": base, "layer_range": part}]} for part in ranges]}

        if len(counts) == 1:
            return {"merge_method": "passthrough", **slices(*counts.values())}
        modules = {
            name: slices(count) if count == max(counts.values()) else {"models": [{"model": base}]}
            for name, count in counts.items()
        }
        return {"merge_method": "passthrough", "modules": modules}

    def check(self, folder: Path) -> _Loaded:
        """The result as transformers loads it.

        Raises:
            UnsoundError: with what is wrong.
        """
        loaded = _load(self._sources.name, folder)
        if self._name in _RANGES:
            report = folder / "wsmerge.json"
            self._check_layers(loaded, report.read_text() if report.exists() else None)
            return loaded
        expected = self._sources.base_loaded
        _check_keys(loaded, expected)
        if self._name == "identity":
            wrong = [key for key, value in expected.tensors.items() if not _equal(value, loaded.tensors.get(key))]
        elif self._name == "linear":
            wrong = [key for key in expected.tensors if not self._is_mean(key, loaded.tensors[key])]
        else:
            wrong = [key for key, value in loaded.tensors.items() if not bool(torch.isfinite(value.float()).all())]
        _refuse(wrong, "have other values than they should")
        return loaded

    def _is_mean(self, key: str, value: torch.Tensor) -> bool:
        base, one = self._sources.base_loaded.tensors[key], self._sources.tuned_loaded.tensors[key]
        if not value.is_floating_point() or key in self._sources.base_loaded.keys["missing_keys"]:
            return True
        mean = _WEIGHTS[0] * base.double() + _WEIGHTS[1] * one.double()
        return bool(torch.all((value.double() - mean).abs() <= _ROUNDED * mean.abs() + 1e-6))

    def _check_layers(self, loaded: _Loaded, told: str | None) -> None:
        """`told` is wsmerge's report, where it wrote the result."""
        base = self._sources.base_loaded
        before, after = _lists(base.model), _lists(loaded.model)
        if set(after) != set(before) and not all(_inside(name, before) for name in set(after) ^ set(before)):
            raise UnsoundError(f"other lists of layers: {min(set(after) ^ set(before))}")
        moved: dict[str, list[int]] = {}
        for name, layers in before.items():
            if name in after and len(after[name]) != len(layers):
                sources = [layer for part in self._ranges(len(layers)) for layer in range(*part)]
                if len(after[name]) != len(sources):
                    raise UnsoundError(f"{name} has {len(after[name])} layers instead of {len(sources)}")
                moved[name] = sources
        if not moved:
            raise UnsoundError("the model has as many layers as before")
        missing = {_moved_from(key, moved) for key in loaded.keys["missing_keys"]}
        _refuse(sorted(missing - set(base.keys["missing_keys"])), "are missing")
        _refuse(loaded.keys["unexpected_keys"], "are unexpected")
        _refuse(loaded.keys["mismatched_keys"], "have another shape")
        wrong = [
            key
            for key, value in loaded.tensors.items()
            if key not in loaded.keys["missing_keys"] and not _equal(value, base.tensors.get(_moved_from(key, moved)))
        ]
        _refuse(wrong, "have other values than the layer they come from")
        for name, sources in moved.items():
            for place, source in enumerate(sources):
                _check_kind(
                    f"{name}.{place}",
                    after[name][place],
                    before[name][source],
                    (place, source),
                    list(before[name]),
                    told,
                )


def _stack(count: int) -> list[list[int]]:
    """All layers, those in the middle twice."""
    return [[0, count - 1], [1, count]] if count > 2 else [[0, count], [count - 1, count]]


def _cut(count: int) -> list[list[int]]:
    """All layers but the last but one."""
    return [[0, max(count - 2, 1)], [count - 1, count]] if count > 2 else [[0, 1]]


def _shift(count: int) -> list[list[int]]:
    """All layers but the first, so that every layer stands where another kind may have stood."""
    return [[min(1, count - 1), count]]


_RANGES: Final[Mapping[str, Callable[[int], list[list[int]]]]] = {"stack": _stack, "cut": _cut, "shift": _shift}


def _lists(model: nn.Module) -> dict[str, nn.ModuleList]:
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}


def _inside(name: str, lists: Mapping[str, nn.ModuleList]) -> bool:
    """Whether it is a list within a layer, such as experts."""
    return any(name.startswith(f"{outer}.") for outer in lists)


def _moved_from(key: str, moved: Mapping[str, Sequence[int]]) -> str:
    for name, sources in moved.items():
        if key.startswith(f"{name}."):
            number, _, rest = key.removeprefix(f"{name}.").partition(".")
            return f"{name}.{sources[int(number)]}.{rest}"
    return key


def _check_kind(
    where: str,
    layer: nn.Module,
    source: nn.Module,
    places: tuple[int, int],
    layers: Sequence[nn.Module],
    told: str | None,
) -> None:
    """Hold that a layer behaves as the one it was copied from: the same modules with the same settings.

    A layer's own number may differ, and what grows evenly with it, and a fraction that is another one for each layer. So may
    a number that all layers share and take from the model's depth, if wsmerge's report tells it.
    """
    ours, theirs = dict(layer.named_modules()), dict(source.named_modules())
    if set(ours) != set(theirs):
        raise UnsoundError(f"{where} is another kind of layer than its source: {min(set(ours) ^ set(theirs))}")
    for name, module in ours.items():
        if type(module) is not type(theirs[name]):
            raise UnsoundError(f"{where}.{name} is a {type(module).__name__}, its source {type(theirs[name]).__name__}")
        for key, value in vars(module).items():
            wanted = vars(theirs[name]).get(key)
            if not isinstance(value, bool | int | float | str | None) or value == wanted or (value, wanted) == places:
                continue
            modules = [dict(item.named_modules()).get(name) for item in layers]
            held = [vars(item)[key] for item in modules if item is not None and key in vars(item)]
            shared = isinstance(value, float) and set(held) == {wanted} and (told is None or key in told)
            if key == "num_hidden_layers" or shared or _follows_position(held):
                continue
            raise UnsoundError(f"{where}.{name}.{key} is {value}, of its source {wanted}".replace("..", "."))


def _follows_position(values: Sequence[Any]) -> bool:
    if any(isinstance(value, bool) or not isinstance(value, int | float) for value in values):
        return False
    if isinstance(values[0], float):
        return len(set(values)) == len(values)
    return len(values) > 2 and len({after - before for before, after in pairwise(values)}) == 1


def _load(name: str, folder: Path) -> _Loaded:
    with _quietly():
        try:
            model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
        except Exception as error:
            raise UnsoundError(f"transformers cannot load it: {_plain(str(error), folder.parent)}") from error
    keys = {
        key: sorted(map(str, info.get(key) or ())) for key in ("missing_keys", "unexpected_keys", "mismatched_keys")
    }
    return _Loaded(model, model.state_dict(), keys)


def _check_keys(loaded: _Loaded, expected: _Loaded) -> None:
    for key, told in (
        ("missing_keys", "missing"),
        ("unexpected_keys", "unexpected"),
        ("mismatched_keys", "of another shape"),
    ):
        _refuse(sorted(set(loaded.keys[key]) - set(expected.keys[key])), f"are {told}")


def _refuse(names: Sequence[str], told: str) -> None:
    if names:
        raise UnsoundError(f"{len(names)} tensors {told}: {names[0]}")


def _equal(left: torch.Tensor, right: torch.Tensor | None) -> bool:
    if right is None or left.shape != right.shape or left.dtype != right.dtype:
        return False
    return torch.equal(left, right) or bool(torch.all((left == right) | (left.isnan() & right.isnan())))


def _check_account(made: Case, out: Path) -> None:
    """Hold that the report accounts for every stored tensor of every source, and that whole models lose none."""
    for item in json.loads((out / "wsmerge.json").read_text())["models"]:
        account = item["tensors"]
        stored = len(read_tensors(made.folder / item["model"]))
        counted = account["merged"] + account["carried"] + sum(part["count"] for part in account["left_out"])
        if not counted == stored == account["stored"]:
            raise UnsoundError(f"the account of {item['model']} has {counted} tensors, and {stored} are stored")
        reasons = [part["reason"] for part in account["left_out"]]
        lost = [reason for reason in reasons if not reason.startswith(("transformers computes it", "one tensor with"))]
        if lost and not made.is_sliced:
            raise UnsoundError(f"tensors are left out of whole models: {lost[0]}")


def _stored_equal(ours: Path, theirs: Path) -> bool:
    if not any(theirs.glob("*.safetensors")):  # mergekit finds no tensor to merge in some
        return False
    left, right = read_tensors(ours), read_tensors(theirs)
    return left.keys() == right.keys() and all(
        (item.dtype, item.shape, item.bits.tobytes())
        == (right[name].dtype, right[name].shape, right[name].bits.tobytes())
        for name, item in left.items()
    )


def _mergekit(made: Case, out: Path, folder: Path) -> str:
    """Run mergekit; why it gave nothing, empty where it did."""
    try:
        with _quietly():
            run_mergekit(made.text(mergekits=True), out, copy_tokenizer=False)
    except Exception as error:  # noqa: BLE001 - any of them
        return f"refuses: {type(error).__name__}: {_plain(str(error), folder)}"
    return ""


def _soundness(made: Case, theirs: Path) -> tuple[str, _Loaded | None]:
    """Whether what mergekit made is right, in words, and it as loaded where it is."""
    try:
        return "sound", made.check(theirs)
    except UnsoundError as error:
        return f"unsound: {error}", None


@contextlib.contextmanager
def asked_once() -> Iterator[None]:
    """mergekit answers at once what it answered before: a model's configuration, and what it infers of the same models.

    It reads the configuration again for each tensor that it converts, and seven recipes have the same few sets of models.
    """
    from mergekit.architecture import auto  # noqa: PLC0415 - the oracle imports mergekit, without its warnings
    from mergekit.common import ModelReference  # noqa: PLC0415 - see above

    reading, infer, held = ModelReference.config, auto.infer_architecture_info, dict[str, Any]()

    def config(self: Any, trust_remote_code: bool = False) -> Any:  # noqa: FBT001, FBT002 - mergekit's signature
        if str(self) not in held:
            held[str(self)] = reading(self, trust_remote_code=trust_remote_code)
        return copy.deepcopy(held[str(self)])

    ModelReference.config, auto.infer_architecture_info = config, partial(infer)
    try:
        yield
    finally:
        ModelReference.config, auto.infer_architecture_info = reading, infer


def _words(error: wsmerge.WsmergeError, folder: Path) -> str:
    detail = f" ({error.details[0]})" if error.details else ""
    return _plain(f"{error.message}{detail}", folder)


def _plain(text: str, folder: Path) -> str:
    """One short line, without the folder that this run has."""
    line = " ".join(text.replace(str(folder.resolve()), "").replace(str(folder), "").split())
    line = re.sub(r"/\S*/(base|one|two|ours|theirs)\b", r"\1", line)
    return line if len(line) <= 240 else f"{line[:237]}..."


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Nothing of what transformers and mergekit log, warn of or print."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
