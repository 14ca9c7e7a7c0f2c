"""Machine code made for one recipe's steps: loops over elements that are written when a merge begins.

A loop passes once over its inputs, sixteen or more elements at a time and then one by one, with nothing but inputs and output in
memory. It is made with LLVM directly (llvmlite, on which numba stands) in some ten milliseconds; numba itself takes half a
second to load. What is computed of the elements is given as a function that emits instructions, the same for both widths,
so the result of an element does not depend on where it stands.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, Final, ParamSpec

import numpy as np
from numpy.typing import NDArray

__all__ = ["LANES", "Emit", "Loop", "Operands", "Value", "made_once", "make_loop"]

LANES: Final = 16
_ENTRY: Final = "loop"

Arguments = ParamSpec("Arguments")

Value = Any
"""An LLVM value; llvmlite ships no types."""


class Loop:
    """Machine code; called without the GIL. Threads may share it."""

    def __init__(self, engine: Any) -> None:  # noqa: ANN401 - llvmlite ships no types
        self._engine = engine  # owns the code
        pointers = [ctypes.c_void_p] * 4
        self._call = ctypes.CFUNCTYPE(None, *pointers, ctypes.c_int64)(engine.get_function_address(_ENTRY))

    def __call__(
        self, bits: NDArray[np.uint16], terms: NDArray[np.float32], numbers: NDArray[np.int64], out: NDArray[Any]
    ) -> None:
        """Run over all columns of `bits`.

        Args:
            bits: inputs x elements, C-contiguous.
            terms: the float32 numbers that the loop was made for, in its order.
            numbers: the integers likewise.
            out: what the loop writes; C-contiguous.
        """
        self._call(bits.ctypes.data, terms.ctypes.data, numbers.ctypes.data, out.ctypes.data, bits.shape[1])


class Emit:
    """Emits instructions on one or several elements at a time."""

    def __init__(self, ir: Any, builder: Any, lanes: int) -> None:  # noqa: ANN401 - as above
        self.build = builder
        self.lanes = lanes
        self._ir = ir
        self._constants: dict[tuple[str, str], Value] = {}
        self._scalar = {
            "i16": ir.IntType(16),
            "i32": ir.IntType(32),
            "i64": ir.IntType(64),
            "f32": ir.FloatType(),
            "f64": ir.DoubleType(),
        }

    @property
    def word(self) -> Any:  # noqa: ANN401 - as above
        """The scalar type of 32 bits."""
        return self._scalar["i32"]

    @property
    def double_pointer(self) -> Any:  # noqa: ANN401 - as above
        """The type of a pointer to one float64."""
        return self._scalar["f64"].as_pointer()

    def type(self, name: str) -> Any:  # noqa: ANN401 - as above
        """The type of `lanes` elements of the scalar type `name`."""
        scalar = self._scalar[name]
        return scalar if self.lanes == 1 else self._ir.VectorType(scalar, self.lanes)

    def constant(self, name: str, value: float) -> Value:
        """The same constant in every lane, made once a pass: written out for each lane, it would be most of the text."""
        key = name, repr(value)  # 0.0 and -0.0 are equal, and not the same
        if key not in self._constants:
            self._constants[key] = self.spread(self._ir.Constant(self._scalar[name], value))
        return self._constants[key]

    def spread(self, value: Value) -> Value:
        """A scalar in every lane."""
        if self.lanes == 1:
            return value
        vector = self._ir.VectorType(value.type, self.lanes)
        one = self.build.insert_element(self._ir.Constant(vector, self._ir.Undefined), value, self._scalar["i32"](0))
        places = self._ir.Constant(self._ir.VectorType(self._scalar["i32"], self.lanes), None)  # zeros
        return self.build.shuffle_vector(one, one, places)

    def counted(self, first: Value) -> Value:
        """The int64 numbers `first`, `first + 1`, ... of the lanes."""
        if self.lanes == 1:
            return first
        steps = self._ir.Constant(self.type("i64"), list(range(self.lanes)))
        return self.build.add(self.spread(first), steps)

    def of(self, lanes: int) -> Emit:
        """Emits on another number of elements at a time."""
        return Emit(self._ir, self.build, lanes)

    def part(self, value: Value, first: int, count: int) -> Value:
        """`count` of the lanes of `value`, from lane `first` on."""
        if count == self.lanes:
            return value
        places = self._ir.Constant(self._ir.VectorType(self._scalar["i32"], count), list(range(first, first + count)))
        return self.build.shuffle_vector(value, value, places)

    def load(self, pointer: Value, name: str, align: int) -> Value:
        """The elements at `pointer`, which is one to the scalar type `name`."""
        return self.build.load(self._at(pointer, name), align=align)

    def store(self, value: Value, pointer: Value, name: str, align: int) -> None:
        """Write elements to `pointer`."""
        self.build.store(value, self._at(pointer, name), align=align)

    def decode(self, bits: Value) -> Value:
        """float32 of bfloat16 bit patterns."""
        word = self.build.shl(self.build.zext(bits, self.type("i32")), self.constant("i32", 16))
        return self.build.bitcast(word, self.type("f32"))

    def rounded(self, value: Value) -> Value:
        """The words whose upper halves are `value` rounded to bfloat16, to nearest even.

        NaN stays NaN without being looked for: here it comes of bfloat16 values, or is the processor's own, so its lower
        half is zero, and what is added to that carries nowhere.
        """
        bits = self.build.bitcast(value, self.type("i32"))
        lowest = self.build.and_(self.build.lshr(bits, self.constant("i32", 16)), self.constant("i32", 1))
        return self.build.add(self.build.add(bits, self.constant("i32", 0x7FFF)), lowest)

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """X * y + z of float32 values with one rounding."""
        kind = self.type("f32")
        name = "llvm.fma.f32" if self.lanes == 1 else f"llvm.fma.v{self.lanes}f32"
        module = self.build.module
        known = module.globals.get(name)
        function = known or self._ir.Function(module, self._ir.FunctionType(kind, [kind] * 3), name)
        return self.build.call(function, [x, y, z])

    def narrow(self, value: Value) -> Value:
        """`value` rounded to bfloat16, held as float32."""
        kept = self.build.and_(self.rounded(value), self.constant("i32", 0xFFFF0000))
        return self.build.bitcast(kept, self.type("f32"))

    def encode(self, value: Value) -> Value:
        """The bit patterns of `value` rounded to bfloat16."""
        return self.build.trunc(self.build.lshr(self.rounded(value), self.constant("i32", 16)), self.type("i16"))

    def one_or_zero(self, condition: Value) -> Value:
        """1.0 where the condition holds, else 0.0: to multiply by, since NaN times 0 is NaN."""
        return self.build.select(condition, self.constant("f32", 1.0), self.constant("f32", 0.0))

    def _at(self, pointer: Value, name: str) -> Value:
        return pointer if self.lanes == 1 else self.build.bitcast(pointer, self.type(name).as_pointer())


class Operands:
    """What a loop is given: `terms` and `numbers` as scalars, `out` as a pointer to bytes."""

    def __init__(self, terms: Sequence[Value], numbers: Sequence[Value], out: Value) -> None:
        self.terms = terms
        self.numbers = numbers
        self.out = out


Body = Callable[[Emit, Sequence[Value], Value, Operands], None]
"""Emits what is done with elements: (emit, float32 values of each input, index of the first, operands)."""


def made_once(make: Callable[Arguments, Loop]) -> Callable[Arguments, Loop]:
    """Keep what `make` gives for each set of arguments; threads that ask at once wait for one that makes it."""
    kept: dict[Any, Loop] = {}
    lock = threading.Lock()

    @wraps(make)
    def found(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Loop:
        key = (args, tuple(sorted(kwargs.items())))
        with lock:
            if key not in kept:
                kept[key] = make(*args, **kwargs)
            return kept[key]

    return found


def make_loop(
    inputs: int, terms: int, numbers: int, body: Body, *, lanes: int = LANES, first_at: int | None = None
) -> Loop:
    """A loop over the elements of `inputs` rows of bfloat16, which is given so many terms and numbers.

    With 1 lane it takes one element at a time throughout. Where number `first_at` says which element of the tensor comes
    first, an odd first one is taken alone, so that several at a time begin at an even one.
    """
    from llvmlite import ir  # noqa: PLC0415 - needed only where weights are computed

    module, size = ir.Module(), ir.IntType(64)
    half, byte = ir.IntType(16).as_pointer(), ir.IntType(8).as_pointer()
    arguments = [half, ir.FloatType().as_pointer(), size.as_pointer(), byte, size]
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), arguments), _ENTRY)
    bits, values, integers, out, count = function.args
    for argument in function.args[:4]:
        argument.add_attribute("noalias")
    build = ir.IRBuilder(function.append_basic_block("entry"))
    operands = Operands(
        [build.load(build.gep(values, [size(place)])) for place in range(terms)],
        [build.load(build.gep(integers, [size(place)])) for place in range(numbers)],
        out,
    )
    rows = [build.gep(bits, [build.mul(count, size(row))]) for row in range(inputs)]

    def emitted(emit: Emit, x: Sequence[Value], index: Value) -> None:
        body(emit, x, index, operands)

    zero = size(0)
    odd = zero if first_at is None else build.and_(operands.numbers[first_at], size(1))
    lead = build.select(build.icmp_signed("<", odd, count), odd, count)
    whole = build.add(lead, build.and_(build.sub(count, lead), size(-lanes)))
    passes = [(1, zero, lead), (lanes, lead, whole), (1, whole, count)] if lanes > 1 else [(1, zero, count)]
    for span in passes if first_at is not None else passes[-2:]:
        build = _emit_pass(ir, build, span, rows, emitted)
    build.ret_void()
    return Loop(_compiled(str(module)))


def _emit_pass(
    ir: Any,  # noqa: ANN401 - llvmlite ships no types
    build: Any,  # noqa: ANN401 - as above
    span: tuple[int, Value, Value],
    rows: Sequence[Value],
    body: Callable[[Emit, Sequence[Value], Value], None],
) -> Any:  # noqa: ANN401 - as above
    """A loop from `first` to `end`, `lanes` elements at a time; returns the builder after it."""
    lanes, first, end = span
    function, before = build.function, build.block
    loop, after = function.append_basic_block(), function.append_basic_block()
    build.cbranch(build.icmp_signed("<", first, end), loop, after)
    build.position_at_end(loop)
    index = build.phi(ir.IntType(64))
    index.add_incoming(first, before)
    emit = Emit(ir, build, lanes)
    body(emit, [emit.decode(emit.load(build.gep(row, [index]), "i16", 2)) for row in rows], index)
    following = build.add(index, ir.IntType(64)(lanes))
    index.add_incoming(following, build.block)
    build.cbranch(build.icmp_signed("<", following, end), loop, after)
    build.position_at_end(after)
    return build


def _compiled(text: str) -> Any:  # noqa: ANN401 - llvmlite ships no types
    import llvmlite.binding as llvm  # noqa: PLC0415 - needed only where weights are computed

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machine = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=2, jit=True
    )
    module = llvm.parse_assembly(text)
    module.triple = llvm.get_process_triple()
    module.data_layout = str(machine.target_data)
    # No passes over the instructions: they are written as they should run, and LLVM's would take longer than they save.
    engine = llvm.create_mcjit_compiler(module, machine)
    engine.finalize_object()
    return engine
