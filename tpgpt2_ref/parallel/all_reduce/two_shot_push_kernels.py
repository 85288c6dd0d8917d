"""The Triton kernel of `two_shot_push.py`; read that first, and `push_kernels.py`, whose pieces of PTX it uses.

A row is SIZE blocks of 16-byte vectors in a row, one block for each rank to sum. What beyond a tensor's end is in its
last row travels as zeros: so every word that somebody waits for comes.
"""
from __future__ import annotations

import triton
import triton.language as tl
from triton.language import core
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait, globaltimer

from .push_kernels import load, push, take


@core.extern
def load_blocks(address, left, rank, size, block, _semantic=None):
    """16 bytes, as four words, of each peer's block, all under way together; zeros from the tensor's end on.

    address is that of rank 0's vectors, `left` how many vectors the tensor has from there on. Rank `rank`'s are zeros.
    """
    peers = [r for r in range(size.value) if r != rank.value]
    words = [f"${i}" for i in range(4 * len(peers))]
    at, more = f"${len(words)}", f"${len(words) + 1}"
    lines = ["{ .reg .pred p;", *(f"mov.b32 {word}, 0;" for word in words)]
    for i, r in enumerate(peers):
        lines += [f"setp.gt.s32 p, {more}, {r * block.value};",
                  f"@p ld.global.v4.b32 {{{', '.join(words[4 * i : 4 * i + 4])}}}, [{at} + {r * block.value * 16}];"]
    got = core.inline_asm_elementwise(
        "\n".join(lines) + " }", ",".join(["=&r"] * len(words)) + ",l,r", [address, left],
        dtype=[core.int32] * len(words), is_pure=False, pack=1, _semantic=_semantic)
    theirs = iter(core.tuple(got[i : i + 4]) for i in range(0, len(got), 4))
    none = core.tuple(got[:4])
    return core.tuple([none if r == rank.value else next(theirs) for r in range(size.value)])


@triton.jit
def half(word, shift: tl.constexpr, dtype: tl.constexpr):
    """The number of 16 bits that begins at bit `shift` of each word, as fp32."""
    return (word >> shift).to(tl.int16).to(dtype, bitcast=True).to(tl.float32)


@triton.jit
def sum_word(words, k: tl.constexpr, SIZE: tl.constexpr, dtype: tl.constexpr):
    """Word k of every rank's vectors -> word k of the sum's: added in rank order in fp32, rounded once."""
    if dtype == tl.float32:
        total = words[0][k].to(tl.float32, bitcast=True)
        for rank in tl.static_range(1, SIZE):
            total += words[rank][k].to(tl.float32, bitcast=True)
        return total.to(tl.int32, bitcast=True)
    else:
        low, high = half(words[0][k], 0, dtype), half(words[0][k], 16, dtype)
        for rank in tl.static_range(1, SIZE):
            low += half(words[rank][k], 0, dtype)
            high += half(words[rank][k], 16, dtype)
        low, high = low.to(dtype).to(tl.int16, bitcast=True), high.to(dtype).to(tl.int16, bitcast=True)
        return (low.to(tl.int32) & 0xFFFF) | (high.to(tl.int32) << 16)


@triton.jit
def scatter(x, vectors, row, peers, parity,
            RANK: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """First shot: each peer's block of x's row into that peer's mailbox."""
    v, every = tl.arange(0, BLOCK), tl.full((BLOCK,), 1, tl.int32)
    first = row * SIZE * BLOCK + v
    words = load_blocks(x.to(tl.int64) + first.to(tl.int64) * 16, vectors - first, RANK, SIZE, BLOCK)
    stride: tl.constexpr = ROWS * ROW_BYTES  # from one sender's rows to the next one's
    at = (tl.load(parity + row).to(tl.int64) * SIZE + RANK) * stride + row * ROW_BYTES + v * 16
    for step in tl.static_range(1, SIZE):  # each rank begins with another peer
        push(tl.load(peers + (RANK + step) % SIZE) + at, every, words[(RANK + step) % SIZE])


@triton.jit
def add_up(x, out, vectors, row, peers, parity, failed, alarm, timeout,
           RANK: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """My block of the row, summed over the ranks, rank 0's first, in fp32. Second shot: the sum, to every peer."""
    v, every = tl.arange(0, BLOCK), tl.full((BLOCK,), 1, tl.int32)
    i = (row * SIZE + RANK) * BLOCK + v
    valid = (i < vectors).to(tl.int32)
    own = load(x.to(tl.int64) + i.to(tl.int64) * 16, valid)
    slot = tl.load(parity + row)
    patience = tl.where(tl.load(failed) == 0, timeout, 0)  # after a failure nobody waits again
    tl.debug_barrier()  # every thread has read the slot
    tl.store(parity + row, slot ^ 1)
    stride: tl.constexpr = ROWS * ROW_BYTES
    at = row * ROW_BYTES + v.to(tl.int64) * 16
    words = take(tl.load(peers + RANK) + slot.to(tl.int64) * SIZE * stride + at, every, own, globaltimer() + patience,
                 failed.to(tl.int64), alarm.to(tl.int64), RANK, SIZE, stride)
    sums = (sum_word(words, 0, SIZE, x.dtype.element_ty), sum_word(words, 1, SIZE, x.dtype.element_ty),
            sum_word(words, 2, SIZE, x.dtype.element_ty), sum_word(words, 3, SIZE, x.dtype.element_ty))
    for step in tl.static_range(1, SIZE):
        push(tl.load(peers + (RANK + step) % SIZE) + (2 * SIZE + RANK) * stride + at, every, sums)
    push(out.to(tl.int64) + i.to(tl.int64) * 16, valid, sums)


@triton.jit
def collect(out, vectors, row, peers, failed, alarm, timeout,
            RANK: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr, BLOCK: tl.constexpr):
    """The peers' sums of their blocks of the row."""
    v, every = tl.arange(0, BLOCK), tl.full((BLOCK,), 1, tl.int32)
    patience = tl.where(tl.load(failed) == 0, timeout, 0)
    stride: tl.constexpr = ROWS * ROW_BYTES
    at = 2 * SIZE * stride + row * ROW_BYTES + v.to(tl.int64) * 16
    words = take(tl.load(peers + RANK) + at, every, (v, v, v, v), globaltimer() + patience,
                 failed.to(tl.int64), alarm.to(tl.int64), RANK, SIZE, stride)
    for rank in tl.static_range(SIZE):
        if rank != RANK:
            i = (row * SIZE + rank) * BLOCK + v
            push(out.to(tl.int64) + i.to(tl.int64) * 16, (i < vectors).to(tl.int32), words[rank])


@triton.jit(do_not_specialize=["vectors", "rows", "timeout"])  # one compilation serves every size
def two_shot_push_all_reduce(x, out, vectors, rows, peers, parity, failed, alarm, timeout: tl.int64,
                             RANK: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr,
                             BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out = x summed over the ranks; SIZE * BLOCK vectors a row, `vectors` in all. out may be x.

    A program's rows are in three stages at once: while it waits for one's parts, the parts of the next are under way,
    and so are the sums of the one before.
    """
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    step = tl.num_programs(0)
    for row in range(tl.program_id(0) - step, rows + step, step):
        if row + step < rows:
            scatter(x, vectors, row + step, peers, parity, RANK, SIZE, ROWS, ROW_BYTES, BLOCK)
        if (row >= 0) & (row < rows):
            add_up(x, out, vectors, row, peers, parity, failed, alarm, timeout, RANK, SIZE, ROWS, ROW_BYTES, BLOCK)
        if row >= step:
            collect(out, vectors, row - step, peers, failed, alarm, timeout, RANK, SIZE, ROWS, ROW_BYTES, BLOCK)
