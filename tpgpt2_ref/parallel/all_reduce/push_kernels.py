"""The Triton kernels of `push.py`; read that first. A row is what one program sums, 16-byte vectors at a time.

Three pieces of PTX are all that Triton lacks: a 16-byte load of raw words, a store that peers see at once
(`st.relaxed.sys`), and a wait on the data itself. Everything else is plain Triton.
"""
from __future__ import annotations

import triton
import triton.language as tl
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
def push(address, valid, a, b, c, d):
    """Write four words into a mailbox. EMPTY, 0xffffffff, becomes 0xfffffffe: one NaN for another."""
    tl.inline_asm_elementwise("""{
        .reg .pred p;
        .reg .b32 a, b, c, d;
        setp.ne.b32 p, $2, 0;
        min.u32 a, $3, 0xfffffffe;  min.u32 b, $4, 0xfffffffe;
        min.u32 c, $5, 0xfffffffe;  min.u32 d, $6, 0xfffffffe;
        @p st.relaxed.sys.global.v4.b32 [$1], {a, b, c, d};
        mov.b32 $0, 0;
        }""", "=r,l,r,r,r,r,r", [address, valid, a, b, c, d], dtype=tl.int32, is_pure=False, pack=1)


@triton.jit
def take(address, valid, deadline, failed, alarm, sender: tl.constexpr):
    """Wait until none of the four words is EMPTY, read them and empty the place again.

    Past the deadline: set `failed` (on the GPU) and `alarm` (on the host) to 1 + sender and give up.
    """
    return tl.inline_asm_elementwise("""{
        .reg .pred absent, full, early;
        .reg .b32 m, n;
        .reg .u64 now;
        mov.b32 $0, 0;  mov.b32 $1, 0;  mov.b32 $2, 0;  mov.b32 $3, 0;
        setp.eq.b32 absent, $5, 0;
        @absent bra done;
    again:
        ld.relaxed.sys.global.v4.b32 {$0, $1, $2, $3}, [$4];
        max.u32 m, $0, $1;
        max.u32 n, $2, $3;
        max.u32 m, m, n;
        setp.ne.u32 full, m, 0xffffffff;
        @full bra empty;
        mov.u64 now, %globaltimer;
        setp.lt.u64 early, now, $6;
        @early bra again;
        st.relaxed.sys.global.b32 [$7], $9;
        st.relaxed.sys.global.b32 [$8], $9;
        bra done;
    empty:
        mov.b32 m, 0xffffffff;
        st.relaxed.sys.global.v4.b32 [$4], {m, m, m, m};
    done:
        }""", "=&r,=&r,=&r,=&r,l,r,l,l,l,r",
        [address, valid, deadline, failed.to(tl.int64), alarm.to(tl.int64), tl.full([], sender + 1, tl.int32)],
        dtype=(tl.int32, tl.int32, tl.int32, tl.int32), is_pure=False, pack=1)


@triton.jit
def floats(a, b, c, d, dtype: tl.constexpr):
    """(N,) vectors of four words -> the numbers in them, in order, as fp32: (4N,) or, of 16 bits, (8N,)."""
    words = tl.reshape(tl.join(tl.join(a, c), tl.join(b, d)), (4 * a.shape[0],))
    if dtype == tl.float32:
        return words.to(tl.float32, bitcast=True)
    else:
        low = (words & 0xFFFF).to(tl.int16).to(dtype, bitcast=True)
        high = (words >> 16).to(tl.int16).to(dtype, bitcast=True)
        return tl.reshape(tl.join(low, high), (8 * a.shape[0],)).to(tl.float32)


@triton.jit
def send(x, i, valid, row, peers, parity, failed, timeout,
         RANK: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr):
    """Push vectors i of x, which are row `row` of the mailboxes, to every peer, and turn the row's slot.

    -> their four words, the slot that was used, the time to stop waiting for the peers'
    """
    a, b, c, d = load(x.to(tl.int64) + i * 16, valid)
    slot = tl.load(parity + row)
    patience = tl.where(tl.load(failed) == 0, timeout, 0)  # after a failure nobody waits again
    for rank in tl.static_range(SIZE):
        if rank != RANK:
            push(place(rank, RANK, slot, row, i, peers, SIZE, ROWS, ROW_BYTES), valid, a, b, c, d)
    tl.debug_barrier()  # every thread has read the slot
    tl.store(parity + row, slot ^ 1)
    return a, b, c, d, slot, globaltimer() + patience


@triton.jit
def place(owner: tl.constexpr, sender: tl.constexpr, slot, row, i, peers,
          SIZE: tl.constexpr, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr):
    """Addresses, in the owner's mailbox, of a row of the sender's vectors."""
    start = ((slot * SIZE + sender) * ROWS + row).to(tl.int64) * ROW_BYTES
    return tl.load(peers + owner) + start + tl.arange(0, i.shape[0]) * 16


@triton.jit
def sum_row(x, i, valid, row, peers, parity, failed, alarm, timeout,
            RANK: tl.constexpr, SIZE: tl.constexpr, ROWS: tl.constexpr, ROW_BYTES: tl.constexpr):
    """Vectors i of x summed over the ranks, rank 0's first, in fp32: one number for each of x's."""
    a, b, c, d, slot, deadline = send(x, i, valid, row, peers, parity, failed, timeout, RANK, SIZE, ROWS, ROW_BYTES)
    dtype: tl.constexpr = x.dtype.element_ty
    own = floats(a, b, c, d, dtype)
    total = tl.zeros_like(own)
    for rank in tl.static_range(SIZE):
        if rank == RANK:
            total += own
        else:
            mine = place(RANK, rank, slot, row, i, peers, SIZE, ROWS, ROW_BYTES)
            e, f, g, h = take(mine, valid, deadline, failed, alarm, rank)
            total += floats(e, f, g, h, dtype)
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
        tl.store(out + n, total.to(out.dtype.element_ty), mask=n < vectors * per_vector)


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
        a, b, c, d, slot, deadline = send(x, i, valid, row, peers, parity, failed, timeout, RANK, SIZE, ROWS, ROW_BYTES)
        here = out.to(tl.int64) + i * 16
        push(here + RANK * vectors * 16, valid, a, b, c, d)
        for rank in tl.static_range(SIZE):
            if rank != RANK:
                mine = place(RANK, rank, slot, row, i, peers, SIZE, ROWS, ROW_BYTES)
                a, b, c, d = take(mine, valid, deadline, failed, alarm, rank)
                push(here + rank * vectors * 16, valid, a, b, c, d)


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
