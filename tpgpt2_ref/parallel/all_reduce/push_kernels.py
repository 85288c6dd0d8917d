"""The Triton kernels of `push.py`; read that first. A row is what one program sums, 16-byte vectors at a time.

Three pieces of PTX are all that Triton lacks: a 16-byte load of raw words, a store that peers see at once
(`st.relaxed.sys`), and a wait on the data itself. Everything else is plain Triton.
"""
from __future__ import annotations

import triton
import triton.language as tl
from triton.language import core
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait, globaltimer


@triton.jit
def load(address, valid):
    """16 bytes, as four words, from each address; zeros where not valid."""
    return tl.inline_asm_elementwise("""{
        .reg .pred p;
        setp.ne.b32 p, $5, 0;
        mov.b32 $0, 0;  mov.b32 $1, 0;  mov.b32 $2, 0;  mov.b32 $3, 0;
        @p ld.global.v4.b32 {$0, $1, $2, $3}, [$4];
        }""", "=&r,=&r,=&r,=&r,l,r", [address, valid],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1)


@triton.jit
def push(address, valid, words):
    """Write four words into a mailbox. EMPTY, 0xffffffff, becomes 0xfffffffe: one NaN for another."""
    a, b, c, d = words
    tl.inline_asm_elementwise("""{
        .reg .pred p;
        .reg .b32 a, b, c, d;
        setp.ne.b32 p, $2, 0;
        min.u32 a, $3, 0xfffffffe;  min.u32 b, $4, 0xfffffffe;
        min.u32 c, $5, 0xfffffffe;  min.u32 d, $6, 0xfffffffe;
        @p st.relaxed.sys.global.v4.b32 [$1], {a, b, c, d};
        mov.b32 $0, 0;
        }""", "=r,l,r,r,r,r,r", [address, valid, a, b, c, d], dtype=tl.int32, is_pure=False, pack=1)


@core.extern
def take(address, valid, own, deadline, failed, alarm, rank, size, stride, _semantic=None):
    """Wait until no peer's word is EMPTY, read them all and empty the places again: -> four words of each rank.

    address is where rank 0's vectors lie, rank r's lie r * stride bytes further. The peers' loads are under way
    together. Past the deadline: set `failed` (on the GPU) and `alarm` (on the host) to 1 + a missing peer; give up.
    """
    peers = [r for r in range(size.value) if r != rank.value]
    words = [f"${i}" for i in range(4 * len(peers))]
    quads = {r: words[4 * i : 4 * i + 4] for i, r in enumerate(peers)}
    at, ok, until, flag, bell = (f"${len(words) + i}" for i in range(5))
    places = {r: f"[{at} + {r * stride.value}]" for r in peers}
    lines = [
        "{ .reg .pred absent, full, early, late;",
        f".reg .b32 all, n, who, {', '.join(f'm{r}' for r in peers)};",
        ".reg .u64 now;",
        *(f"mov.b32 {word}, 0;" for word in words),
        f"setp.eq.b32 absent, {ok}, 0;",
        "@absent bra done;",
        "again:",
        *(f"ld.relaxed.sys.global.v4.b32 {{{', '.join(quads[r])}}}, {places[r]};" for r in peers),
        "mov.b32 all, 0;",
        *("max.u32 m{0}, {1}, {2};  max.u32 n, {3}, {4};  max.u32 m{0}, m{0}, n;  max.u32 all, all, m{0};".format(
            r, *quads[r]) for r in peers),
        "setp.ne.u32 full, all, 0xffffffff;",
        "@full bra empty;",
        "mov.u64 now, %globaltimer;",
        f"setp.lt.u64 early, now, {until};",
        "@early bra again;",
        *(f"setp.eq.u32 late, m{r}, 0xffffffff;  @late mov.b32 who, {r + 1};" for r in peers),
        f"st.relaxed.sys.global.b32 [{flag}], who;",
        f"st.relaxed.sys.global.b32 [{bell}], who;",
        "bra done;",
        "empty:",
        "mov.b32 all, 0xffffffff;",
        *(f"st.relaxed.sys.global.v4.b32 {places[r]}, {{all, all, all, all}};" for r in peers),
        "done: }",
    ]
    got = core.inline_asm_elementwise(
        "\n".join(lines), ",".join(["=&r"] * len(words)) + ",l,r,l,l,l", [address, valid, deadline, failed, alarm],
        dtype=[core.int32] * len(words), is_pure=False, pack=1, _semantic=_semantic)
    theirs = iter(core.tuple(got[i : i + 4]) for i in range(0, len(got), 4))
    return core.tuple([own if r == rank.value else next(theirs) for r in range(size.value)])


@triton.jit
def floats(words, dtype: tl.constexpr):
    """(N,) vectors of four words -> the numbers in them, in order, as fp32: (4N,) or, of 16 bits, (8N,)."""
    a, b, c, d = words
    w = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (4 * a.shape[0],))
    if dtype == tl.float32:
        return w.to(tl.float32, bitcast=True)
    else:
        low = (w & 0xFFFF).to(tl.int16).to(dtype, bitcast=True)
        high = (w >> 16).to(tl.int16).to(dtype, bitcast=True)
        return tl.reshape(tl.join(low, high), (8 * a.shape[0],)).to(tl.float32)


@triton.jit
def exchange(x, i, valid, row, peers, parity, failed, alarm, timeout,
             RANK: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr):
    """Push vectors i of x, which are row `row` of the mailboxes, to every peer, and take theirs of that row.

    -> for each rank, four words of every vector
    """
    own = load(x.to(tl.int64) + i * 16, valid)
    slot = tl.load(parity + row)
    patience = tl.where(tl.load(failed) == 0, timeout, 0)  # after a failure nobody waits again
    stride: tl.constexpr = ROWS * ROW_BYTES  # from one sender's rows to the next one's
    at = slot.to(tl.int64) * SIZE * stride + row * ROW_BYTES + tl.arange(0, i.shape[0]) * 16
    for rank in tl.static_range(SIZE):
        if rank != RANK:
            push(tl.load(peers + rank) + at + RANK * stride, valid, own)
    tl.debug_barrier()  # every thread has read the slot
    tl.store(parity + row, slot ^ 1)
    return take(tl.load(peers + RANK) + at, valid, own, globaltimer() + patience, failed.to(tl.int64),
                alarm.to(tl.int64), RANK, SIZE, stride)


@triton.jit
def sum_row(x, i, valid, row, peers, parity, failed, alarm, timeout,
            RANK: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr):
    """Vectors i of x summed over the ranks, rank 0's first, in fp32: one number for each of x's."""
    words = exchange(x, i, valid, row, peers, parity, failed, alarm, timeout, RANK, SIZE, ROWS, ROW_BYTES)
    total = floats(words[0], x.dtype.element_ty)
    for rank in tl.static_range(1, SIZE):
        total += floats(words[rank], x.dtype.element_ty)
    return total


@triton.jit(do_not_specialize=["vectors", "rows", "timeout"])  # one compilation serves every size
def push_all_reduce(x, out, vectors, rows, peers, parity, failed, alarm, timeout: tl.int64,
                    RANK: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr,
                    BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out = x summed over the ranks; BLOCK vectors a row, `vectors` in all. out may be x."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    per_vector: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        i = row * BLOCK + tl.arange(0, BLOCK)
        total = sum_row(x, i, (i < vectors).to(tl.int32), row, peers, parity, failed, alarm, timeout,
                        RANK, SIZE, ROWS, ROW_BYTES)
        n = row * BLOCK * per_vector + tl.arange(0, BLOCK * per_vector)
        tl.store(out + n, total.to(out.dtype.element_ty), mask=n < vectors * per_vector)  # 16 bytes a thread


@triton.jit(do_not_specialize=["vectors", "rows", "timeout"])
def push_all_gather(x, out, vectors, rows, peers, parity, failed, alarm, timeout: tl.int64,
                    RANK: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr,
                    BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out[rank] = that rank's x: the same exchange without the sum."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        i = row * BLOCK + tl.arange(0, BLOCK)
        valid = (i < vectors).to(tl.int32)
        words = exchange(x, i, valid, row, peers, parity, failed, alarm, timeout, RANK, SIZE, ROWS, ROW_BYTES)
        for rank in tl.static_range(SIZE):
            push(out.to(tl.int64) + (rank * vectors + i) * 16, valid, words[rank])


@triton.jit(do_not_specialize=["rows", "timeout"])
def push_add_norm(x, bias, residual, weight, bias_ln, normed, new_residual, eps, rows,
                  peers, parity, failed, alarm, timeout: tl.int64,
                  RANK: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr,
                  BLOCK: tl.constexpr, D: tl.constexpr, PDL: tl.constexpr):
    """A row is a token: new_residual = residual + bias + the sum of x over the ranks; normed = LayerNorm of that."""
    per_vector: tl.constexpr = 128 // x.dtype.element_ty.primitive_bitwidth
    v = tl.arange(0, BLOCK)
    valid = (v < D // per_vector).to(tl.int32)
    n = tl.arange(0, BLOCK * per_vector)
    real = n < D
    add = tl.load(bias + n, mask=real, other=0.0).to(tl.float32)  # weights: no kernel before this one writes them
    scale = tl.load(weight + n, mask=real, other=0.0).to(tl.float32)
    shift = tl.load(bias_ln + n, mask=real, other=0.0).to(tl.float32)
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    for row in range(tl.program_id(0), rows, tl.num_programs(0)):
        skip = tl.load(residual + row * D + n, mask=real, other=0.0).to(tl.float32)
        total = sum_row(x, row * (D // per_vector) + v, valid, row, peers, parity, failed, alarm, timeout,
                        RANK, SIZE, ROWS, ROW_BYTES)
        h = total + add + skip  # zero beyond D
        tl.store(new_residual + row * D + n, h.to(new_residual.dtype.element_ty), mask=real)
        mean = tl.sum(h) / D
        centred = tl.where(real, h - mean, 0.0)
        rstd = tl.rsqrt(tl.sum(centred * centred) / D + eps)
        tl.store(normed + row * D + n, (centred * rstd * scale + shift).to(normed.dtype.element_ty), mask=real)
