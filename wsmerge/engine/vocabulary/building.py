"""Builds the output's tokenizer with mergekit, and finds each model's row of each token.

mergekit orders models by a set and the tokens of a tokenizer by a hash table, so the ids that its unions give to new
tokens differ from run to run. Here both orders are defined: the base, then the models as the recipe has them, and the
tokens of one model by their ids. Everything else is mergekit's own.

A token whose id lies beyond the model's vocabulary has no row there, and counts as missing (mergekit stops at it).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from wsmerge.core.files import refuse_lfs_pointers
from wsmerge.engine.vocabulary.settings import VocabularyModel, VocabularySettings
from wsmerge.engine.vocabulary.vocabulary import TOKENIZER_FILES, Vocabulary
from wsmerge.errors import RecipeError, WsmergeError

__all__ = ["build_vocabulary", "padded"]

_LISTED: Final = 5


def build_vocabulary(
    models: Sequence[VocabularyModel],
    settings: VocabularySettings | None,
    *,
    base: VocabularyModel | None = None,
    trust_remote_code: bool = False,
) -> Vocabulary | None:
    """The vocabulary that `settings` asks for, None where they are None. Imports mergekit, which takes seconds.

    Args:
        models: every model that the recipe refers to, in the order of first appearance.
        settings: the recipe's.
        base: the recipe's base; the first model takes its place where there is none.
        trust_remote_code: whether code that comes with a tokenizer or a configuration may run.

    Raises:
        RecipeError: a tokenizer that is needed cannot be read, or mergekit cannot build from it.
    """
    if settings is None:
        return None
    first = base or models[0]
    ordered = list({model.label: model for model in (first, *models)}.values())
    for model in ordered:
        refuse_lfs_pointers(
            map(model.folder.joinpath, sorted(TOKENIZER_FILES)), RecipeError
        )  # a tokenizer that cannot be read is else taken for the base's
    with _warnings_of_mergekit() as notes:
        return _Builder(ordered, settings, notes, trust_remote_code=trust_remote_code).build()


def padded(size: int, multiple: int | None) -> int:
    """`size` rounded up to a multiple."""
    return -(-size // multiple) * multiple if multiple else size


class _ById:
    """A tokenizer whose tokens come in the order of their ids; everything else is the tokenizer's."""

    def __init__(self, tokenizer: Any) -> None:  # noqa: ANN401 - transformers gives no usable type
        self._tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - whatever the tokenizer has
        return getattr(self._tokenizer, name)

    def get_vocab(self) -> dict[str, int]:
        return _by_id(self._tokenizer.get_vocab())

    @property
    def vocab_size(self) -> int:
        """One past the last id; without it mergekit drops added tokens where it finds no size in the configuration."""
        return max(self._tokenizer.get_vocab().values(), default=-1) + 1


class _Builder:
    """Builds one vocabulary; the first of the models is the base."""

    def __init__(
        self,
        models: Sequence[VocabularyModel],
        settings: VocabularySettings,
        notes: list[str],
        *,
        trust_remote_code: bool,
    ) -> None:
        self._models, self._settings, self._notes, self._trust = models, settings, notes, trust_remote_code

    def build(self) -> Vocabulary:
        tokenizers = self._tokenizers()
        tokenizer = self._output(tokenizers)
        known = set(tokenizer.get_vocab())
        for token in self._settings.tokens:
            if token not in known:
                tokenizer.add_tokens(token)
        token_ids = _by_id(tokenizer.get_vocab())
        if lost := [token for token in self._settings.tokens if token not in token_ids]:
            raise RecipeError(
                f"the tokenizer does not take {_some(lost)}", where="tokenizer.tokens", hint="drop it from the recipe"
            )
        named = max(token_ids.values(), default=-1) + 1
        model_tokens = {label: _by_id(found.get_vocab()) for label, found in tokenizers.items()}
        return Vocabulary(
            token_ids=token_ids,
            size=padded(named, self._settings.pad_to_multiple_of),
            permutations={model.label: self._permutation(model, token_ids, model_tokens) for model in self._models},
            model_tokens=model_tokens,
            tokens=dict(self._settings.tokens),
            notes=tuple(self._notes),
            tokenizer=tokenizer,
        )

    def _tokenizers(self) -> dict[str, Any]:
        """By label; models whose tokenizer cannot be read are left out, but for the base."""
        from mergekit.tokenizer.build import get_stripped_tokenizer  # noqa: PLC0415 - heavy

        base = self._models[0]
        with _refusing(base):
            found = {base.label: get_stripped_tokenizer(_path(base), trust_remote_code=self._trust)}
        for model in self._models[1:]:
            try:
                found[model.label] = _loaded(model, trust=self._trust)
            except Exception as error:  # noqa: BLE001 - transformers raises whatever its readers meet
                self._notes.append(
                    f"the tokenizer of {model.label} cannot be read ({_line(error)}); it is taken to be that of {base.label}"
                )
        return found

    def _output(self, tokenizers: Mapping[str, Any]) -> Any:  # noqa: ANN401 - transformers gives no usable type
        source, base = self._settings.source, self._models[0]
        if isinstance(source, VocabularyModel):
            with _refusing(source):
                return _loaded(source, trust=self._trust)
        if source == "base":
            return tokenizers[base.label]
        from mergekit.tokenizer.build import build_union_tokenizer  # noqa: PLC0415 - heavy

        references = {_reference(model): model.label for model in self._models if model.label in tokenizers}
        ordered = {reference: _ById(tokenizers[label]) for reference, label in references.items()}
        with _refusing(base):
            return build_union_tokenizer(tokenizers[base.label], ordered, trust_remote_code=self._trust)

    def _permutation(
        self, model: VocabularyModel, token_ids: Mapping[str, int], model_tokens: Mapping[str, Mapping[str, int]]
    ) -> NDArray[np.int64]:
        """The model's row of each output row, shape (named rows,); -1 for none."""
        from mergekit.tokenizer.build import get_vocab_size  # noqa: PLC0415 - heavy

        own = model_tokens.get(model.label, model_tokens[self._models[0].label])
        rows = get_vocab_size(_path(model), trust_remote_code=self._trust)
        found = np.full(max(token_ids.values(), default=-1) + 1, -1, np.int64)
        outside = []
        for token, new in token_ids.items():
            old = own.get(token, -1)
            if rows is not None and old >= rows:
                outside.append(token)
            else:
                found[new] = old
        if outside:
            self._notes.append(
                f"{model.label} has no rows for {len(outside)} tokens of its tokenizer, as {_some(outside)}: "
                f"its vocabulary has {rows} rows; they count as missing"
            )
        return found


def _reference(model: VocabularyModel) -> Any:  # noqa: ANN401 - mergekit ships no types
    """The model for mergekit: its folder, and the label, which keeps two adapters on one model apart."""
    from mergekit.common import ModelPath, ModelReference  # noqa: PLC0415 - heavy

    return ModelReference(model=_path(model), lora=ModelPath(path=model.label))


def _path(model: VocabularyModel) -> Any:  # noqa: ANN401 - mergekit ships no types
    from mergekit.common import ModelPath  # noqa: PLC0415 - heavy

    return ModelPath(path=str(model.folder))


def _loaded(model: VocabularyModel, *, trust: bool) -> Any:  # noqa: ANN401 - transformers gives no usable type
    import transformers  # noqa: PLC0415 - heavy

    return transformers.AutoTokenizer.from_pretrained(str(model.folder), trust_remote_code=trust)


def _by_id(vocabulary: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(vocabulary.items(), key=lambda item: (item[1], item[0])))


@contextmanager
def _refusing(model: VocabularyModel) -> Iterator[None]:
    try:
        yield
    except WsmergeError:
        raise
    except Exception as error:
        raise RecipeError(
            f"the output's tokenizer cannot be built: {_line(error)}",
            where=model.label,
            hint="name a model with a tokenizer that transformers reads (tokenizer_source), or drop the tokenizer's "
            "settings to keep the base's",
        ) from error


@contextmanager
def _warnings_of_mergekit() -> Iterator[list[str]]:
    """What mergekit warns of while it builds, once each and only the first few, in place of its log."""
    notes: list[str] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage()
            if record.levelno >= logging.WARNING and len(notes) < _LISTED and line not in notes:
                notes.append(line)

    logger, handler = logging.getLogger("mergekit.tokenizer.build"), Collect()
    propagates = logger.propagate
    logger.propagate = False
    logger.addHandler(handler)
    try:
        yield notes
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _some(tokens: Sequence[str]) -> str:
    return ", ".join(repr(token) for token in tokens[:_LISTED])
