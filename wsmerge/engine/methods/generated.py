"""The methods on bfloat16 as it is stored, as loops made for one recipe's steps (see `machine`).

    x_j = float32(bits_j)        out = bits of narrow(merged(x_1, x_2, ...))

The operations are those of `delta_loops`, `trimming_loops` and `random_loops`, in the same order with the same roundings; a
test compares them bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wsmerge.engine.methods.machine import LANES, Emit, Loop, Operands, Value, made_once, make_loop
from wsmerge.engine.methods.random import FIRST_FACTOR, GOLDEN, SECOND_FACTOR

__all__ = [
    "COUNT_TABLES",
    "DeltaShape",
    "Mask",
    "blend_loop",
    "count_loop",
    "delta_keys_loop",
    "delta_loop",
    "norms_loop",
]

Float32 = NDArray[np.float32]
Bits16 = NDArray[np.uint16]

COUNT_TABLES = 4
_PER_MASK = 4
_WIDE_LANES = 64
"""Of loops with long chains of instructions: several chains side by side keep the processor busy."""
_NO_NUMBERS = (0,) * _PER_MASK

MaskKind = Literal["all", "none", "between", "drawn"]


@dataclass(frozen=True, slots=True)
class Mask:
    """What is kept of one delta.

    Attributes:
        kind: everything, nothing, magnitudes between two cuts, or what a random number decides.
        ratio: by which kept elements are multiplied.
        numbers: for elements from a given one on, the four integers that the loop reads: of `between` the key and the
            place of the lower cut, then of the upper one, places counted from that element; of `drawn` the stream's
            key, the limit, that element, and 0.
    """

    kind: MaskKind
    ratio: float = 1.0
    numbers: Callable[[int], Sequence[int]] = lambda _first: _NO_NUMBERS


@dataclass(frozen=True, slots=True)
class DeltaShape:
    """Which operations a step on deltas has.

    Attributes:
        inputs: how many, the base among them.
        base_at: position of the base.
        masks: kind of the mask of each delta.
        scaled: whether each delta is multiplied by a ratio.
        consensus: whether only terms with the sign of their sum count.
        divides: whether the sum is divided.
        scales: whether it is multiplied by lambda.
    """

    inputs: int
    base_at: int
    masks: tuple[MaskKind, ...]
    scaled: tuple[bool, ...]
    consensus: bool
    divides: bool
    scales: bool


@made_once
def blend_loop(inputs: int, *, divides: bool) -> Loop:
    """sum_i w_i * x_i / divisor as `delta_loops.blend` has it; terms: one weight an input, then the divisor."""

    def body(emit: Emit, x: Sequence[Value], index: Value, given: Operands) -> None:
        total = emit.constant("f32", 0.0)
        for value, weight in zip(x, given.terms, strict=False):
            total = emit.fma(value, emit.spread(weight), total)
        if divides:
            total = emit.build.fdiv(total, emit.spread(given.terms[inputs]))
        _write(emit, emit.encode(total), index, given)

    return make_loop(inputs, inputs + 1, 0, body)


@made_once
def delta_loop(shape: DeltaShape) -> Loop:
    """Base + lambda * (sum of masked, weighted deltas) / divisor, as `delta_loops` has it.

    Terms: one weight a delta, then one ratio a delta, then the divisor, then lambda. Numbers: four a delta.
    """
    count = shape.inputs - 1

    def body(emit: Emit, x: Sequence[Value], index: Value, given: Operands) -> None:
        build, base = emit.build, x[shape.base_at]
        others = [value for position, value in enumerate(x) if position != shape.base_at]
        scaled: list[Value] = []
        for j, value in enumerate(others):
            delta = _masked(emit, shape.masks[j], emit.narrow(build.fsub(value, base)), index, given, j)
            if shape.scaled[j]:
                delta = emit.narrow(build.fmul(delta, emit.spread(given.terms[count + j])))
            scaled.append(emit.narrow(build.fmul(delta, emit.spread(given.terms[j]))))
        total, divisor = _agreed(emit, scaled, given) if shape.consensus else (_sum(emit, scaled), None)
        if shape.divides:
            by = _nonzero(emit, divisor) if divisor is not None else emit.spread(given.terms[2 * count])
            total = build.fdiv(emit.narrow(total), by)
        if shape.scales:
            total = build.fmul(emit.narrow(total), emit.spread(given.terms[2 * count + 1]))
        _write(emit, emit.encode(build.fadd(base, emit.narrow(total))), index, given)

    lanes = LANES if set(shape.masks) <= {"all"} and not shape.consensus else _WIDE_LANES
    first_at = _first_at(shape.masks)
    return make_loop(shape.inputs, 2 * count + 2, _PER_MASK * count, body, lanes=lanes, first_at=first_at)


@made_once
def delta_keys_loop(inputs: int, base_at: int) -> Loop:
    """Of each delta narrow(x - base) the 15 bits that order its magnitudes: uint16, deltas x elements.

    Numbers: how many elements there are.
    """

    def body(emit: Emit, x: Sequence[Value], index: Value, given: Operands) -> None:
        others = (value for position, value in enumerate(x) if position != base_at)
        for row, value in enumerate(others):
            key = _key(emit, emit.narrow(emit.build.fsub(value, x[base_at])))
            place = emit.build.add(index, emit.build.mul(given.numbers[0], index.type(row)))
            _write(emit, emit.build.trunc(key, emit.type("i16")), place, given)

    return make_loop(inputs, 0, 1, body)


@made_once
def count_loop() -> Loop:
    """Adds how often each of 2**16 patterns occurs in one row to 4 x 2**16 int64 tables, of which the counts are the sum.

    Four, since equal neighbours would wait for one another.
    """

    def body(emit: Emit, x: Sequence[Value], index: Value, given: Operands) -> None:
        build = emit.build
        pattern = build.lshr(build.bitcast(x[0], emit.type("i32")), emit.constant("i32", 16))
        table = build.shl(build.and_(index, index.type(COUNT_TABLES - 1)), index.type(16))
        place = build.add(build.zext(pattern, index.type), table)
        pointer = build.gep(build.bitcast(given.out, index.type.as_pointer()), [place])
        build.store(build.add(build.load(pointer), index.type(1)), pointer)

    return make_loop(1, 0, 0, body, lanes=1)


@made_once
def norms_loop(inputs: int, base_at: int, drawn: tuple[bool, ...]) -> Loop:
    """Of each delta with a drawn mask, adds |delta| and |delta * mask| to float64 lanes, element i to lane i % 16.

    The lanes are deltas x 2 x 16. Numbers: those of each delta's mask. The first element must stand at a multiple of 16.
    """

    def body(emit: Emit, x: Sequence[Value], index: Value, given: Operands) -> None:
        others = [value for position, value in enumerate(x) if position != base_at]
        for j, value in enumerate(others):
            if drawn[j]:
                delta = emit.narrow(emit.build.fsub(value, x[base_at]))
                masked = _masked(emit, "drawn", delta, index, given, j)
                _add_magnitude(emit, delta, index, given, 2 * j)
                _add_magnitude(emit, masked, index, given, 2 * j + 1)

    return make_loop(inputs, 0, _PER_MASK * (inputs - 1), body, lanes=2 * LANES)


def _add_magnitude(emit: Emit, value: Value, index: Value, given: Operands, row: int) -> None:
    """Add elements to the lanes of `row`: one, or several times 16 from a multiple of 16 on, in their order."""
    build = emit.build
    word = build.and_(build.bitcast(value, emit.type("i32")), emit.constant("i32", 0x7FFFFFFF))
    magnitude = build.bitcast(word, emit.type("f32"))
    lane = build.add(build.and_(index, index.type(LANES - 1)), index.type(LANES * row))
    pointer = build.gep(build.bitcast(given.out, emit.double_pointer), [lane])
    part = emit.of(min(emit.lanes, LANES))
    total = part.load(pointer, "f64", 8)
    for first in range(0, emit.lanes, part.lanes):
        total = build.fadd(total, build.fpext(emit.part(magnitude, first, part.lanes), part.type("f64")))
    part.store(total, pointer, "f64", 8)


def _first_at(masks: Sequence[MaskKind]) -> int | None:
    """The number that says which element of the tensor comes first, where random masks count from it."""
    return _PER_MASK * masks.index("drawn") + 2 if "drawn" in masks else None


def _write(emit: Emit, bits: Value, index: Value, given: Operands) -> None:
    half = bits.type.element if emit.lanes > 1 else bits.type
    pointer = emit.build.gep(emit.build.bitcast(given.out, half.as_pointer()), [index])
    emit.store(bits, pointer, "i16", 2)


def _sum(emit: Emit, values: Sequence[Value]) -> Value:
    total = emit.constant("f32", 0.0)
    for value in values:
        total = emit.build.fadd(total, value)
    return total


def _agreed(emit: Emit, scaled: Sequence[Value], given: Operands) -> tuple[Value, Value]:
    """The sum of the terms that have the sign of the whole, and that of their weights."""
    build, zero = emit.build, emit.constant("f32", 0.0)
    positive = build.fcmp_ordered(">=", _sum(emit, scaled), zero)
    total, share = zero, zero
    for value, weight in zip(scaled, given.terms, strict=False):
        same = build.not_(build.xor(build.fcmp_ordered(">", value, zero), positive))
        mask = emit.one_or_zero(build.and_(same, build.fcmp_unordered("!=", value, zero)))
        total = build.fadd(total, build.fmul(value, mask))
        share = build.fadd(share, build.fmul(emit.spread(weight), mask))
    return total, share


def _nonzero(emit: Emit, share: Value) -> Value:
    divisor = emit.narrow(share)
    is_zero = emit.build.fcmp_ordered("==", divisor, emit.constant("f32", 0.0))
    return emit.build.select(is_zero, emit.constant("f32", 1.0), divisor)


def _masked(emit: Emit, kind: MaskKind, delta: Value, index: Value, given: Operands, position: int) -> Value:
    if kind == "all":
        return delta
    if kind == "none":
        return emit.constant("f32", 0.0)
    numbers = given.numbers[_PER_MASK * position : _PER_MASK * (position + 1)]
    kept = _between(emit, delta, index, numbers) if kind == "between" else _drawn(emit, index, numbers)
    return emit.build.fmul(delta, emit.one_or_zero(kept))


def _key(emit: Emit, delta: Value) -> Value:
    upper = emit.build.lshr(emit.build.bitcast(delta, emit.type("i32")), emit.constant("i32", 16))
    return emit.build.and_(upper, emit.constant("i32", 0x7FFF))


def _between(emit: Emit, delta: Value, index: Value, numbers: Sequence[Value]) -> Value:
    """Above the lower cut and not above the upper one; of equal keys the lower index lies above."""
    build = emit.build
    key, place = _key(emit, delta), build.trunc(emit.counted(index), emit.type("i32"))

    def above(cut_key: Value, cut_place: Value) -> Value:
        at, until = (emit.spread(build.trunc(value, emit.word)) for value in (cut_key, cut_place))
        equal = build.and_(build.icmp_signed("==", key, at), build.icmp_signed("<", place, until))
        return build.or_(build.icmp_signed(">", key, at), equal)

    return build.and_(above(numbers[0], numbers[1]), build.not_(above(numbers[2], numbers[3])))


def _drawn(emit: Emit, index: Value, numbers: Sequence[Value]) -> Value:
    """Whether the element's random number lies below the limit; see `random` for the generator.

    Several elements at a time begin at an even one, so that their numbers are the halves of whole words.
    """
    build = emit.build
    element = build.add(index, numbers[2])
    pair = build.lshr(element, index.type(1))
    if emit.lanes == 1:
        word = _random_words(emit, pair, numbers[0])
        shift = build.shl(build.and_(element, index.type(1)), index.type(5))
        drawn = build.trunc(build.lshr(word, shift), emit.word)
    else:
        drawn = build.bitcast(_random_words(emit.of(emit.lanes // 2), pair, numbers[0]), emit.type("i32"))
    return build.icmp_unsigned("<", drawn, emit.spread(build.trunc(numbers[1], emit.word)))


def _random_words(emit: Emit, first: Value, key: Value) -> Value:
    """The words `first`, `first + 1`, ... of the stream."""
    build = emit.build

    def mixed(value: Value, shift: int) -> Value:
        return build.xor(value, build.lshr(value, emit.constant("i64", shift)))

    number = emit.counted(build.add(first, first.type(1)))
    z = build.add(emit.spread(key), build.mul(number, emit.constant("i64", GOLDEN)))
    z = build.mul(mixed(z, 30), emit.constant("i64", FIRST_FACTOR))
    z = build.mul(mixed(z, 27), emit.constant("i64", SECOND_FACTOR))
    return mixed(z, 31)
