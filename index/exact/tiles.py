"""Tiles: the inner loops of exact search, written as LLVM instructions.

A tile compares a few vectors with a few queries, and keeps all sums in registers. The machine code
of plain loops depends on the version of the compiler. A tile states its instructions, such as the
multiply-add of bytes (VNNI), and adds the sums of a score in the same order on every machine.

Each tile is a numba intrinsic over addresses (int64), which is compiled into its caller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.registry import cpu_target
from numba.extending import intrinsic

PANEL = 32  # number of vectors whose codes are stored together
ROWS = 4  # vectors of a tile of floats
SUMS = 16  # partial sums of a score

_I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
_HALF, _FLOAT, _DOUBLE = ir.HalfType(), ir.FloatType(), ir.DoubleType()
_VNNI = {16: "llvm.x86.avx512.vpdpbusd.512", 8: "llvm.x86.avx512.vpdpbusd.256"}


def features() -> frozenset[str]:
    """Returns the names of the processor features that numba compiles for."""
    listed = cpu_target.target_context.codegen().magic_tuple()[2]
    return frozenset(name[1:] for name in listed.split(",") if name.startswith("+"))


_FEATURES = features()
_WIDE = "avx512f" in _FEATURES
# int32 lanes of the multiply-add of bytes; 0 if the processor lacks this instruction
INT8_LANES = 16 if "avx512vnni" in _FEATURES else 8 if "avxvnni" in _FEATURES else 0
FLOAT_LANES = 16 if _WIDE else 8 if "avx2" in _FEATURES else 4
# whether the processor converts half precision, for which numba has no library
HALVES = "f16c" in _FEATURES or "neon" in _FEATURES
# numbers of queries of a tile, widest first; the registers limit them
INT8_QUERIES = (12, 4, 1) if INT8_LANES != 8 else (2, 1, 1)
FLOAT_QUERIES = 6 if _WIDE else 2


class _Code:  # pragma: no cover (runs while numba compiles, not when it loads what it compiled)
    """Writer of instructions at the position of a builder."""

    def __init__(self, builder: Any) -> None:
        self.b = builder

    def external(self, name: str, result: Any, *args: Any) -> Any:
        """Returns an LLVM intrinsic function."""
        declared = self.b.module.globals.get(name)
        return declared or ir.Function(self.b.module, ir.FunctionType(result, args), name)

    def splat(self, value: Any, lanes: int) -> Any:
        kind = ir.VectorType(value.type, lanes)
        nothing = ir.Constant(kind, ir.Undefined)
        first = self.b.insert_element(nothing, value, ir.Constant(_I32, 0))
        zeros = ir.Constant(ir.VectorType(_I32, lanes), [0] * lanes)
        return self.b.shuffle_vector(first, nothing, zeros)

    def address(self, base: Any, offset: Any, kind: Any) -> Any:
        if isinstance(offset, int):
            offset = ir.Constant(_I64, offset)
        return self.b.inttoptr(self.b.add(base, offset), kind.as_pointer())

    def load(self, base: Any, offset: Any, kind: Any) -> Any:
        return self.b.load(self.address(base, offset, kind), align=1)

    def store(self, value: Any, base: Any, offset: int) -> None:
        self.b.store(value, self.address(base, offset, value.type), align=1)

    def fma(self, x: Any, y: Any, z: Any) -> Any:
        scalar = "f64" if x.type.element == _DOUBLE else "f32"
        fma = self.external(f"llvm.fma.v{x.type.count}{scalar}", x.type, x.type, x.type, x.type)
        return self.b.call(fma, [x, y, z])

    def rounds(self, rest: Any, lanes: int) -> Any:
        """Returns the number of vectors with `lanes` lanes that hold `rest` components."""
        more = self.b.add(rest, ir.Constant(_I64, lanes - 1))
        return self.b.udiv(more, ir.Constant(_I64, lanes))

    def bits_at_least(self, value: Any, limit: Any, shift: int) -> Any:
        """Returns int32 with bit shift + i set for each lane i where value >= limit."""
        lanes = self.b.bitcast(
            self.b.fcmp_ordered(">=", value, limit), ir.IntType(value.type.count)
        )
        return self.b.shl(self.b.zext(lanes, _I32), ir.Constant(_I32, shift))

    def bit_if_any(self, mask: Any, number: int) -> Any:
        """Returns int32 with bit `number` set if the mask is not 0, else 0."""
        some = self.b.zext(self.b.icmp_unsigned("!=", mask, ir.Constant(_I32, 0)), _I32)
        return self.b.shl(some, ir.Constant(_I32, number))

    def sum_lanes(self, vector: Any) -> Any:
        """Returns the sum of the lanes; halves are added until one lane is left."""
        while vector.type.count > 1:
            half = vector.type.count // 2
            nothing = ir.Constant(vector.type, ir.Undefined)
            low, high = (
                self.b.shuffle_vector(
                    vector, nothing, ir.Constant(ir.VectorType(_I32, half), [*chosen])
                )
                for chosen in (range(half), range(half, 2 * half))
            )
            vector = self.b.fadd(low, high)
        return self.b.extract_element(vector, ir.Constant(_I32, 0))

    @contextmanager
    def loop(self, count: Any, carried: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
        """Writes a loop of `count` rounds; the `with` block replaces items of the yielded list."""
        before = self.b.block
        body, after = self.b.append_basic_block(), self.b.append_basic_block()
        some = self.b.icmp_signed(">", count, ir.Constant(_I64, 0))
        self.b.cbranch(some, body, after)
        self.b.position_at_end(body)
        round_ = self.b.phi(_I64)
        round_.add_incoming(ir.Constant(_I64, 0), before)
        phis = [self.b.phi(value.type) for value in carried]
        values = list(phis)
        yield round_, values
        following = self.b.add(round_, ir.Constant(_I64, 1))
        end = self.b.block
        round_.add_incoming(following, end)
        for phi, first, value in zip(phis, carried, values, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(value, end)
        self.b.cbranch(self.b.icmp_signed("<", following, count), body, after)
        self.b.position_at_end(after)
        results = []
        for first, value in zip(carried, values, strict=True):
            result = self.b.phi(first.type)
            result.add_incoming(first, before)
            result.add_incoming(value, end)
            results.append(result)
        values[:] = results

    def floats(self, base: Any, offset: Any, lanes: int, stored: Any, rest: Any = None) -> Any:
        """Returns float32 lanes of a vector stored in half or single precision.

        Only the first `rest` lanes are read, and the other lanes are 0. None reads all lanes.
        """
        bits = _I16 if stored == _HALF else _I32
        kind = ir.VectorType(bits, lanes)
        if rest is None:
            loaded = self.load(base, offset, kind)
        else:
            numbers = ir.Constant(ir.VectorType(_I64, lanes), list(range(lanes)))
            mask = self.b.icmp_signed("<", numbers, self.splat(rest, lanes))
            pointer = self.address(base, offset, kind)
            name = f"llvm.masked.load.v{lanes}i{bits.width}.p0"
            masked = self.external(name, kind, pointer.type, _I32, mask.type, kind)
            zeros = ir.Constant(kind, [0] * lanes)
            loaded = self.b.call(masked, [pointer, ir.Constant(_I32, 1), mask, zeros])
        vector = self.b.bitcast(loaded, ir.VectorType(stored, lanes))
        single = ir.VectorType(_FLOAT, lanes)
        return vector if stored == _FLOAT else self.b.fpext(vector, single)


def _of_addresses(write: Callable[..., Any]) -> Any:
    """Returns an intrinsic that takes a tuple of int64 and returns an int64."""

    @intrinsic
    def tile(context: Any, values: Any) -> Any:  # pragma: no cover (runs while numba compiles)
        def codegen(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return write(_Code(builder), *cgutils.unpack_tuple(builder, arguments[0]))  # type: ignore[no-untyped-call]

        return types.int64(values), codegen

    return tile


def int8_tile(queries: int) -> Any:
    """Returns the tile that compares a panel of codes with a number of queries.

    The call `tile((codes, query_codes, steps, starts, factors, limits, scales, errors, out,
    masks))` computes for vector i of the panel and query j

        out[j, i] = scales[i] * (starts[j] + sum over 4 * steps components of code * query code)
                    + factors[j] * errors[i]

    and sets bit i of masks[j] if out[j, i] is at least limits[j]. The call returns an integer whose
    bit j is set if masks[j] is not 0.

    Layout: codes uint8 [steps, PANEL, 4], query_codes int8 [steps, queries, 4], starts int32
    [queries], factors and limits float32 [queries], scales and errors float32 [PANEL], out float32
    [queries, PANEL], masks uint32 [queries].
    """

    def write(c: _Code, *values: Any) -> Any:  # pragma: no cover (runs while numba compiles)
        codes, query, steps, starts, factors, limits, scales, errors, out, masks = values
        lanes = INT8_LANES
        vectors = PANEL // lanes
        ints, floats = ir.VectorType(_I32, lanes), ir.VectorType(_FLOAT, lanes)
        bytes_ = ir.VectorType(_I8, 4 * lanes)
        multiply = c.external(_VNNI[lanes], ints, ints, bytes_, bytes_)
        sums = []
        for j in range(queries):
            sums += [c.splat(c.load(starts, 4 * j, _I32), lanes)] * vectors
        carried = [codes, query, *sums]
        with c.loop(steps, carried) as (_, now):
            here, query_at, *sums = now
            given = [c.load(here, 4 * lanes * v, bytes_) for v in range(vectors)]
            for j in range(queries):
                four = c.b.bitcast(c.splat(c.load(query_at, 4 * j, _I32), lanes), bytes_)
                for v in range(vectors):
                    at = j * vectors + v
                    now[2 + at] = c.b.call(multiply, [sums[at], given[v], four])
            now[0] = c.b.add(here, ir.Constant(_I64, 4 * PANEL))
            now[1] = c.b.add(query_at, ir.Constant(_I64, 4 * queries))
        sums = now[2:]
        scale = [c.load(scales, 4 * lanes * v, floats) for v in range(vectors)]
        error = [c.load(errors, 4 * lanes * v, floats) for v in range(vectors)]
        reached = ir.Constant(_I32, 0)
        for j in range(queries):
            factor = c.splat(c.load(factors, 4 * j, _FLOAT), lanes)
            limit = c.splat(c.load(limits, 4 * j, _FLOAT), lanes)
            mask = ir.Constant(_I32, 0)
            for v in range(vectors):
                product = c.b.fmul(c.b.sitofp(sums[j * vectors + v], floats), scale[v])
                value = c.fma(error[v], factor, product)
                c.store(value, out, 4 * (j * PANEL + v * lanes))
                mask = c.b.or_(mask, c.bits_at_least(value, limit, v * lanes))
            c.store(mask, masks, 4 * j)
            reached = c.b.or_(reached, c.bit_if_any(mask, j))
        return c.b.zext(reached, _I64)

    return _of_addresses(write)


def float_tile(queries: int, half: bool) -> Any:
    """Returns the tile that compares ROWS stored vectors with a number of queries, in float32.

    The call `tile((row0, row1, row2, row3, factors, query, stride, limits, steps, rest, out,
    masks))` computes for vector i of ROWS and query j

        out[j, i] = factors[i] * sum over SUMS * steps + rest components of vector * query

    and sets bit i of masks[j] if out[j, i] is at least limits[j]. The call returns the bitwise or
    of all masks.

    Layout: row0 to row3 are the addresses of the vectors (float16 if `half`, else float32);
    factors float32 [ROWS]; query float32 [queries, stride bytes], 0 after the last component;
    limits float32 [queries]; out float32 [queries, ROWS], masks uint32 [queries].
    """

    def write(c: _Code, *values: Any) -> Any:  # pragma: no cover (runs while numba compiles)
        rows, (factors, query, stride, limits) = values[:ROWS], values[ROWS : ROWS + 4]
        steps, rest, out, masks = values[ROWS + 4 :]
        lanes = FLOAT_LANES
        stored, size = (_HALF, 2) if half else (_FLOAT, 4)
        floats = ir.VectorType(_FLOAT, lanes)
        query_at = [c.b.add(query, c.b.mul(stride, ir.Constant(_I64, j))) for j in range(queries)]
        chunks = SUMS // lanes

        def add(sums: list[Any], at: Any, left: Any = None) -> list[Any]:
            """Adds the products of the `lanes` components that begin at component `at`."""
            by_size = c.b.mul(at, ir.Constant(_I64, size))
            by_four = c.b.mul(at, ir.Constant(_I64, 4))
            given = [c.floats(row, by_size, lanes, stored, left) for row in rows]
            wanted = [c.load(a, by_four, floats) for a in query_at]
            return [
                c.fma(given[i], wanted[j], sums[j * ROWS + i])
                for j in range(queries)
                for i in range(ROWS)
            ]

        zeros = ir.Constant(floats, [0.0] * lanes)
        sums = [zeros] * (queries * ROWS)
        with c.loop(c.b.mul(steps, ir.Constant(_I64, chunks)), sums) as (number, now):
            now[:] = add(list(now), c.b.mul(number, ir.Constant(_I64, lanes)))
        with c.loop(c.rounds(rest, lanes), now) as (number, last):
            done = c.b.mul(number, ir.Constant(_I64, lanes))
            at = c.b.add(c.b.mul(steps, ir.Constant(_I64, SUMS)), done)
            last[:] = add(list(last), at, c.b.sub(rest, done))
        reached = ir.Constant(_I32, 0)
        four = ir.VectorType(_FLOAT, ROWS)
        factor = c.load(factors, 0, four)
        for j in range(queries):
            value = ir.Constant(four, ir.Undefined)
            for i in range(ROWS):
                total = c.sum_lanes(last[j * ROWS + i])
                value = c.b.insert_element(value, total, ir.Constant(_I32, i))
            value = c.b.fmul(value, factor)
            c.store(value, out, 4 * j * ROWS)
            limit = c.splat(c.load(limits, 4 * j, _FLOAT), ROWS)
            mask = c.bits_at_least(value, limit, 0)
            c.store(mask, masks, 4 * j)
            reached = c.b.or_(reached, mask)
        return c.b.zext(reached, _I64)

    return _of_addresses(write)


def score_tile(half: bool) -> Any:
    """Returns the tile of the score of one vector: a float64 dot product, added in a fixed order.

    The call `tile((row, length, query, steps, rest, out))` divides each component of the stored
    vector by the float32 at `length` in float32, as Vectors.read does. It writes the dot product of
    the quotient with the query, and the squared length of the quotient, to out: float64 [2].

    Products of two float32 are exact in float64. Each of SUMS partial sums adds every SUMS-th
    product, and halves of the partial sums are added. The result is therefore the same on every
    processor, and with and without other queries.

    Layout: row float16 if `half`, else float32; query float32, 0 after the last component up to a
    multiple of SUMS.
    """

    def write(c: _Code, *values: Any) -> Any:  # pragma: no cover (runs while numba compiles)
        row, length, query, steps, rest, out = values
        stored, size = (_HALF, 2) if half else (_FLOAT, 4)
        singles, doubles = ir.VectorType(_FLOAT, SUMS), ir.VectorType(_DOUBLE, SUMS)
        divisor = c.splat(c.load(length, 0, _FLOAT), SUMS)

        def add(sums: list[Any], number: Any, left: Any = None) -> list[Any]:
            by_size = c.b.mul(number, ir.Constant(_I64, SUMS * size))
            by_four = c.b.mul(number, ir.Constant(_I64, SUMS * 4))
            unit = c.b.fdiv(c.floats(row, by_size, SUMS, stored, left), divisor)
            wide = c.b.fpext(unit, doubles)
            wanted = c.b.fpext(c.load(query, by_four, singles), doubles)
            return [c.fma(wide, wanted, sums[0]), c.fma(unit, unit, sums[1])]

        zeros = [ir.Constant(kind, [0.0] * SUMS) for kind in (doubles, singles)]
        with c.loop(steps, zeros) as (number, now):
            now[:] = add(list(now), number)
        with c.loop(c.rounds(rest, SUMS), now) as (_, last):
            last[:] = add(list(last), steps, rest)
        c.store(c.sum_lanes(last[0]), out, 0)
        c.store(c.b.fpext(c.sum_lanes(last[1]), _DOUBLE), out, 8)
        return ir.Constant(_I64, 0)

    return _of_addresses(write)


def lowest_bit() -> Any:
    """Returns the intrinsic `lowest((mask,))`: the number of the lowest bit that is set."""

    def write(c: _Code, mask: Any) -> Any:  # pragma: no cover (runs while numba compiles)
        count = c.external("llvm.cttz.i64", _I64, _I64, ir.IntType(1))
        return c.b.call(count, [mask, ir.Constant(ir.IntType(1), 1)])

    return _of_addresses(write)
