"""Small tokenizers with their configurations, tensors in memory, and mergekit's own alignment of the two."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from wsmerge.core.dtypes import BF16, DType, dtype_named, from_float32
from wsmerge.core.tensors import StoredName, TensorSpec

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


@cache
def mergekit() -> Any:
    """The live package, with the parts that these tests compare against."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what mergekit's own imports warn of is not ours
        import mergekit.merge  # noqa: PLC0415 - seven seconds, for these tests alone
        import mergekit.tokenizer.build  # noqa: PLC0415
        import mergekit.tokenizer.embed  # noqa: PLC0415
    return mergekit


def make_tokenizer(
    folder: Path,
    words: Sequence[str],
    *,
    added: Sequence[str] = (),
    template: str | None = None,
    rows: int | None = None,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """A folder with a byte-pair tokenizer that knows `words`, and a `config.json` with `rows` rows (all tokens for None)."""
    import tokenizers  # noqa: PLC0415 - heavy, for these tests alone
    import transformers  # noqa: PLC0415

    vocabulary = {letter: number for number, letter in enumerate(sorted({letter for word in words for letter in word}))}
    merges = []
    for word in words:
        for end in range(2, len(word) + 1):
            if word[:end] not in vocabulary:
                merges.append((word[: end - 1], word[end - 1]))
                vocabulary[word[:end]] = len(vocabulary)
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"unk_token": "<unk>", "eos_token": "</s>"}
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    for token in added:
        fast.add_tokens([tokenizers.AddedToken(token, special=token.startswith("<|"))])
    if template is not None:
        fast.chat_template = template
    folder.mkdir(parents=True, exist_ok=True)
    fast.save_pretrained(str(folder))
    settings = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": rows or len(fast)}
    (folder / "config.json").write_text(json.dumps(settings | dict(config or {})))
    return folder


@contextmanager
def ordered_tokens(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Tokens come in the order of their ids, so that mergekit's unions give the same ids each time."""
    from transformers import PreTrainedTokenizerFast  # noqa: PLC0415 - heavy

    plain = PreTrainedTokenizerFast.get_vocab
    with monkeypatch.context() as patch:
        patch.setattr(
            PreTrainedTokenizerFast,
            "get_vocab",
            lambda self: dict(sorted(plain(self).items(), key=lambda item: item[1])),
        )
        yield


def mergekits_info(models: Sequence[str], source: str, *, base: str | None = None, tokens: Sequence[str] = ()) -> Any:
    """What mergekit's `build_tokenizer` gives; `source` is union, base, or a model."""
    reference = mergekit().common.ModelReference.model_validate
    return mergekit().tokenizer.build.build_tokenizer(
        base_model=reference(base) if base else None,
        referenced_models=[reference(model) for model in models],
        tokenizer_source=source if source in ("union", "base") else reference(source),
        trust_remote_code=False,
        add_tokens=list(tokens),
    )


def mergekits_tensors(
    info: Any,
    tensors: Mapping[str, Any],
    *,
    base: str | None,
    axis: int,
    tokens: Mapping[str, Any],
    pad: int | None,
) -> list[Any]:
    """What mergekit's `PermutedVocabulary` gives for torch tensors by model, in their order."""
    reference = mergekit().common.ModelReference.model_validate
    config = mergekit().tokenizer.config.TokenizerConfig(tokens=tokens or None)
    task = mergekit().tokenizer.embed.PermutedVocabulary.model_construct(
        gather_tensors=None,
        tokenizer_task=None,
        tokens=config.tokens,
        pad_to_multiple_of=pad,
        base_model=reference(base) if base else None,
        vocabulary_axis=axis,
    )
    result = task.execute(info, {reference(model): tensor for model, tensor in tensors.items()})
    return [result[reference(model)] for model in tensors]


@dataclass
class MemoryTensor:
    """Implements `TensorInput` over an array of the dtype's storage, and notes each read."""

    dtype: DType
    bits: NDArray[Any]
    label: str = "memory"
    made_of: tuple[StoredName, ...] = ()
    reads: list[tuple[int, int]] = field(default_factory=list)

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec("model.embed_tokens.weight", self.dtype, self.bits.shape)

    def read_into(self, start: int, out: memoryview) -> None:
        self.reads.append((start, len(out)))
        assert start + len(out) <= self.bits.nbytes
        out[:] = self.bits.tobytes()[start : start + len(out)]


def random_tensor(shape: tuple[int, ...], dtype: str, seed: int) -> MemoryTensor:
    values = np.random.default_rng(seed).standard_normal(shape)
    held = dtype_named(dtype)
    if dtype == "float64":
        return MemoryTensor(held, values)
    return MemoryTensor(held, from_float32(values.astype(np.float32), held))


def as_torch(tensor: MemoryTensor, cast: str | None = None) -> Any:
    """The tensor as torch's, as mergekit loads it."""
    import torch  # noqa: PLC0415 - heavy, for these tests alone

    if tensor.dtype is BF16:
        held = torch.from_numpy(tensor.bits.view(np.int16).copy()).view(torch.bfloat16)
    else:
        held = torch.from_numpy(tensor.bits.copy())
    return held.to(getattr(torch, cast)) if cast else held


def bytes_of(tensor: Any) -> bytes:
    """The bytes of a torch tensor, row-major."""
    import torch  # noqa: PLC0415 - heavy, for these tests alone

    return bytes(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def read_in_parts(tensor: Any, seed: int) -> bytes:
    """All bytes of a `TensorInput`, read in ranges of random size, last to first."""
    spec = tensor.spec
    generator = np.random.default_rng(seed)
    cuts = sorted({0, spec.numel, *generator.integers(0, spec.numel + 1, 7).tolist()})
    out = bytearray(spec.nbytes)
    size = spec.dtype.itemsize
    for begin, end in reversed(list(pairwise(cuts))):
        tensor.read_into(begin * size, memoryview(out)[begin * size : end * size])
    return bytes(out)
