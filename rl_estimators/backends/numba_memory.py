# mypy: disable-error-code="no-untyped-def, no-untyped-call"
"""Two things that a compiled loop over large arrays should tell the processor: what it will read, and what it will not.

A core that meets a number which is not in its cache waits some hundred nanoseconds. The hardware sees a row being read
and runs ahead of it, but not beyond the page of 4 KiB, so that each page begins with a wait. A loop that takes a chunk
at a time and asks (:func:`ask`) for a later one finds it there.

A number that is written is first read: the cache fetches its line, 64 bytes, to put the number into it. Where the whole
line is about to be overwritten, and the output is so large that it will have left the cache before anybody reads it,
:func:`put` writes past the cache: half the traffic, and what stands in the cache stays there.

Sums over the rows of 32 MiB, masks with holes, on one thread of an EPYC: 3.0 ms, with the numbers asked for 1.9. 32 MiB
filled, on a Xeon: 3.9 ms, past the cache 1.3.
"""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from rl_estimators.backends.numba_compile import compiled

__all__ = ["CHUNK", "ask", "eights", "piece", "put", "settle"]

CHUNK = 512  # numbers that a loop takes at a time: 2 KiB in fp32
_LINE = 64  # bytes of a line of the cache

_byte, _int, _long = ir.IntType(8), ir.IntType(32), ir.IntType(64)


def _place(context: Any, builder: Any, array: Any, value: Any, t: Any) -> Any:
    """A pointer to number ``t`` of a contiguous array, and a number's bytes."""
    data = context.make_array(array)(context, builder, value).data
    return builder.gep(data, [t]), context.get_abi_sizeof(context.get_data_type(array.dtype))


@intrinsic
def ask(typing, array, start, stop):
    """Have ``array[start:stop]`` brought to the second-level cache; nobody waits, and nothing beyond the array fails."""

    def generate(context, builder, signature, given):
        place, size = _place(context, builder, array, *given[:2])
        first = builder.bitcast(place, _byte.as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [first.type, _int, _int, _int])
        prefetch = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        length = builder.mul(builder.sub(given[2], given[1]), _long(size))
        with cgutils.for_range_slice(builder, _long(0), length, _long(_LINE), inc=True) as (offset, _):
            # to be read; of four levels from 0, never again, to 3, at once: 2; data
            builder.call(prefetch, [builder.gep(first, [offset]), _int(0), _int(2), _int(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp, types.intp), generate


def _borrowed(context: Any, builder: Any, kind: Any, place: Any, size: Any) -> Any:
    """A flat array of that kind over memory that somebody else keeps.

    It is not counted as a user of the memory: counting takes an atomic operation, which waits until all that was written
    past the cache has arrived, and would be felt in short rows.
    """
    found = context.make_array(kind)(context, builder)
    step = _long(context.get_abi_sizeof(context.get_data_type(kind.dtype)))
    pointer = builder.bitcast(place, context.get_data_type(kind.dtype).as_pointer())
    populate_array(found, data=pointer, shape=[size], strides=[step], itemsize=step, meminfo=None)
    return found._getvalue()


@intrinsic
def piece(typing, array, start, size):
    """``array[start : start + size]`` of a flat array that outlives it."""
    kind = types.Array(array.dtype, 1, "C")

    def generate(context, builder, signature, given):
        place, _ = _place(context, builder, array, *given[:2])
        return _borrowed(context, builder, kind, place, given[2])

    return kind(array, types.intp, types.intp), generate


@intrinsic
def eights(typing, array):
    """A flat array of bytes that outlives it, eight of them as one number; what is left behind the last eight is left out."""
    kind = types.Array(types.uint64, 1, "C")

    def generate(context, builder, signature, given):
        place, _ = _place(context, builder, array, given[0], _long(0))
        shape = context.make_array(array)(context, builder, given[0]).shape
        size = builder.udiv(builder.extract_value(shape, 0), _long(8))
        return _borrowed(context, builder, kind, place, size)

    return kind(array), generate


@intrinsic
def _line(typing, out, t, source, k):
    """``out[t : t + n] = source[k : k + n]`` past the cache, for the n numbers of a line, which begins at t."""

    def generate(context, builder, signature, given):
        to, size = _place(context, builder, out, *given[:2])
        of, _ = _place(context, builder, source, *given[2:])
        line = ir.VectorType(context.get_data_type(out.dtype), _LINE // size)
        numbers = builder.load(builder.bitcast(of, line.as_pointer()), align=size)
        store = builder.store(numbers, builder.bitcast(to, line.as_pointer()), align=_LINE)
        store.set_metadata("nontemporal", builder.module.add_metadata([_int(1)]))
        return context.get_dummy_value()

    return types.void(out, types.intp, source, types.intp), generate


@intrinsic
def settle(typing):
    """What was written past the cache is seen by other threads from here on."""

    def generate(context, builder, signature, given):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.void(), generate


@intrinsic
def _per_line(typing, array):
    """How many numbers of an array fill a line."""

    def generate(context, builder, signature, given):
        return _long(_LINE // context.get_abi_sizeof(context.get_data_type(array.dtype)))

    return types.intp(array), generate


@intrinsic
def _offset(typing, array, t):
    """How many bytes number t lies behind the beginning of a line."""

    def generate(context, builder, signature, given):
        place, _ = _place(context, builder, array, *given)
        return builder.and_(builder.ptrtoint(place, _long), _long(_LINE - 1))

    return types.intp(array, types.intp), generate


@compiled()
def put(out, start, stop, source):
    """``out[start:stop] = source[: stop - start]``, past the cache; both flat, and of one dtype."""
    number = _per_line(out)
    t, k = start, 0
    while t < stop and _offset(out, t) != 0:
        out[t] = source[k]
        t, k = t + 1, k + 1
    while t + number <= stop:
        _line(out, t, source, k)
        t, k = t + number, k + number
    while t < stop:
        out[t] = source[k]
        t, k = t + 1, k + 1
