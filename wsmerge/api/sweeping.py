"""The lab: sweeps over signed strengths, and conversations with a steered model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wsmerge.api.references import opened
from wsmerge.core.alone import alone_in
from wsmerge.engine.locate import locate_model
from wsmerge.registry import Direction, Registry, open_registry

if TYPE_CHECKING:
    from wsmerge.steering.conversation import ChatOptions, Conversation
    from wsmerge.steering.sweep.results import SweepResult
    from wsmerge.steering.sweep.running import Progress

__all__ = ["ChatOptions", "Conversation", "chat", "sweep"]


def sweep(  # noqa: PLR0913 - all but the first two are keywords with defaults
    config: Path | str | Mapping[str, Any],
    out: Path | str,
    *,
    store: Registry | None = None,
    restart: bool = False,
    plots: bool = True,
    allow_code: Iterable[str] = (),
    key_env: Iterable[str] = (),
    device: str | None = None,
    progress: Progress | None = None,
) -> SweepResult:
    """Measure methods of changing a behaviour at many strengths, and pick one of each within a budget.

    Random directions of the same shapes, ranks and norms stand beside every method by weights, and methods are compared where
    they have changed the model by as much, unless the file refuses it (`controls: false`). Everything is chosen on the
    validation items; the test items are only reported. Each finished point is written down in
    `out`, so that the same call goes on after a kill. At the end `out` has `sweep.json`, `sweep.csv` and, where matplotlib
    is installed, `curves.png` and `pareto.png`.

    Args:
        config: a sweep file, or what one says as a mapping, whose paths are then relative to the working folder.
        out: folder for the journal and the results.
        store: where references are looked up.
        restart: throw away what was measured in `out` before.
        plots: whether plots are drawn.
        allow_code: modules whose functions the file may call, and folders of lm-eval tasks that it may include.
        key_env: environment variables that the file may send to its judge, beside those known to be its keys.
        device: where the model runs, if not where the file says, which is an accelerator if there is one.
        progress: called before each point.

    Raises:
        UsageError: a bad sweep file, one that asks for what is not allowed, bad items, or another sweep's journal in `out`.
        BaseMismatchError: a direction or an adapter that does not fit the base.
        JudgeError: a judge failed; what was answered and scored is kept, and the same call goes on.
        OutputError: `out` cannot be written, or another process works there.
    """
    from wsmerge.steering.loading import chosen_device  # noqa: PLC0415 - needs torch
    from wsmerge.steering.named import Allowed  # noqa: PLC0415 - only this needs it
    from wsmerge.steering.sweep.evaluations import write_evaluations  # noqa: PLC0415 - as below
    from wsmerge.steering.sweep.files import write_results  # noqa: PLC0415 - needs torch
    from wsmerge.steering.sweep.identity import sweep_digest  # noqa: PLC0415 - as above
    from wsmerge.steering.sweep.journal import Journal  # noqa: PLC0415 - as above
    from wsmerge.steering.sweep.lab import Lab  # noqa: PLC0415 - as above
    from wsmerge.steering.sweep.measures import load_scorers  # noqa: PLC0415 - as above
    from wsmerge.steering.sweep.reading import load_sweep, parse_sweep  # noqa: PLC0415 - as above
    from wsmerge.steering.sweep.running import Sweep  # noqa: PLC0415 - as above

    if isinstance(config, Mapping):
        settings, folder = parse_sweep(config), Path()
    else:
        settings, folder = load_sweep(Path(config)), Path(config).parent
    # What was measured on one device is no part of a sweep on another.
    settings = settings.model_copy(update={"device": chosen_device(device or settings.device)})
    allowed = Allowed(frozenset(allow_code), frozenset(key_env))
    scorers = load_scorers(settings.measures, folder, allowed, settings.controls)
    with Lab(settings, folder, store or open_registry()) as lab:
        digests = {name: source.digest for name, source in lab.sources.items()}
        digest = sweep_digest(settings, folder, digests, lab.models)
        with alone_in(Path(out)), Journal(Path(out), digest, restart=restart) as journal:
            running = Sweep(settings, lambda: lab.subject, scorers, journal, progress)
            found = running.run(lab.contestants(), lab.original if settings.repair else None)
            result = replace(found, notes=(*found.notes, *lab.notes()))
        write_results(result, Path(out), plots=plots)
        if settings.evaluation is not None:
            directions = {name: one for name, one in lab.sources.items() if isinstance(one, Direction)}
            write_evaluations(result, settings.evaluation, directions, Path(out))
    return result


@contextmanager
def chat(
    base: Path | str,
    directions: Mapping[str, float],
    *,
    options: ChatOptions | None = None,
    template_args: Mapping[str, Any] | None = None,
    dtype: str = "auto",
    device: str = "auto",
    store: Registry | None = None,
) -> Iterator[Conversation]:
    """Open a conversation with a steered model.

        with wsmerge.chat("HuggingFaceTB/SmolLM2-135M-Instruct", {"sycophancy": -1.5}) as conversation:
            conversation.answer("I think that 2 + 2 = 5. Am I right?", print)

    Args:
        base: the model: a checkpoint folder, or a Hub id.
        directions: reference of each direction, and its coefficient at first.
        options: how answers are made.
        template_args: arguments of the model's chat template, such as `{"enable_thinking": False}`.
        dtype: what the model computes in; `auto` is bfloat16 on a GPU and float32 elsewhere.
        device: as torch names it; `auto` is an accelerator if there is one.
        store: where references are looked up.

    Raises:
        CheckpointError: the model cannot be loaded, or its tokenizer has no chat template.
        BaseMismatchError: a direction that does not fit the model.
        UsageError: no such dtype or device.
    """
    from wsmerge.steering.conversation import Conversation  # noqa: PLC0415 - needs torch
    from wsmerge.steering.held import Steering  # noqa: PLC0415 - as above
    from wsmerge.steering.loading import load_model, load_tokenizer  # noqa: PLC0415 - as above

    folder = locate_model(str(base))
    with opened(directions, store or open_registry()) as found:
        model, tokenizer = load_model(folder, dtype=dtype, device=device), load_tokenizer(folder, template_args)
        with Steering(model, found) as steering:
            yield Conversation(model, tokenizer, steering, directions, options)


def __getattr__(name: str) -> Any:  # noqa: ANN401 - classes whose module needs torch
    if name in ("ChatOptions", "Conversation"):
        return getattr(import_module("wsmerge.steering.conversation"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
