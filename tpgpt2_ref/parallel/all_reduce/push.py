"""Push: each rank writes its tensor into its peers' memory, and the data itself says that it has come.

    rank 0                                       rank 1
    write x0 into rank 1's mailbox      ──►      poll my mailbox until no word is EMPTY: x0
    poll my mailbox: x1                 ◄──      write x1 into rank 0's mailbox
    EMPTY what was read; out = x0 + x1           EMPTY what was read; out = x0 + x1

One crossing of NVLink a call. No barrier, no flag: a mailbox is full of the word EMPTY (0xffffffff, a NaN in
fp32 and two in fp16 and bf16), a tensor never holds that word (`push` turns it into 0xfffffffe, another NaN), so a
word that is not EMPTY has arrived. Words may come in any order and a 16-byte store may be torn; nothing depends on it.

Two slots, used in turn, are enough. In call k rank 0 writes into slot k % 2 of rank 1, so it must be sure that
rank 1 has read and emptied call k-2. It is: it has ended call k-1, so it has read what rank 1 wrote in call k-1,
and rank 1 only wrote that after its own call k-2 had ended. `push_model.py` tries every order of events, and
`tests/test_push_ptx.py` runs the compiled kernels thread by thread on a CPU.

Which slot is next stands in GPU memory, one bit for each row of the mailbox, and the kernel that uses the row flips
it: a CUDA graph that is replayed goes on where the last replay stopped, and calls of any size may follow each other.
All ranks add in rank order in fp32 and get the same bits.

NCCL's LL protocol polls data too, with a flag beside every 4 bytes (Hu et al. 2025, arXiv 2507.04786). Polling for a
value that never occurs is known from TensorRT-LLM's "Lamport" kernels; two slots from SGLang, vLLM pull request 44748.
"""
from __future__ import annotations

from importlib.util import find_spec

import torch
import torch.nn.functional as F

from ...errors import RankError
from .base import AllReduce
from .symmetric import aligned, symmetric_buffer, unreachable

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
ROW_BYTES = 8192  # what one program sums: a token of up to 4,096 features of 16 bits
SMALL_ROW_BYTES, SMALL_ROWS = 2048, 128  # calls of up to 128 small rows are spread over more programs
ROWS_OF_ALL = 4096  # rows of all senders together: a mailbox takes 2 * 4096 * 8 KiB, whatever the number of ranks


class PushAllReduce(AllReduce):
    """Sums tensors of up to 16 MiB at two ranks, 8 MiB at four, 4 MiB at eight."""

    name = "push"
    gathers = True

    def __init__(self, world):
        rows = ROWS_OF_ALL // world.size
        buffer, addresses = symmetric_buffer(world, 2 * world.size * rows * ROW_BYTES)
        self.box = Mailbox(buffer, world.rank, addresses, rows, world.timeout)
        self.pdl = torch.cuda.get_device_capability(world.device) >= (9, 0)  # calls in a row: each is set up early

    @classmethod
    def missing(cls, world) -> str | None:
        if reason := unreachable(world):
            return reason
        return None if torch.version.cuda and find_spec("triton") else "it needs NVIDIA GPUs and Triton"

    def can(self, x: torch.Tensor) -> bool:
        return x.dtype in DTYPES and 0 < x.nbytes <= self.box.rows * ROW_BYTES and x.nbytes % 16 == 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.check()
        return self.box.sum(aligned(x), self.pdl)

    def fuses(self, partial: torch.Tensor) -> bool:
        """Whether `fused_add_norm` takes partial sums of this shape (T, D) and dtype."""
        tokens, width = partial.shape
        row = width * partial.element_size()
        return partial.dtype in DTYPES and 0 < tokens <= self.box.rows and row <= ROW_BYTES and row % 16 == 0

    def fused_add_norm(self, partial: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor,
                       bias_ln: torch.Tensor, eps: float, pdl: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """All-reduce, then `add_norm`, in one kernel; for tensors that `fuses` accepts.

        partial       (T, D) this rank's product, without its bias
        bias          (D,) added once to the sum; residual (T, D) what the sum is added to
        weight        (D,) and bias_ln (D,) of the LayerNorm that follows
        pdl           programmatic dependent launch: the kernel may be set up while the one before it still runs, and
                      lets the one after it do the same. That one must then wait itself before it reads anything
        returns       normed (T, D), new_residual (T, D): new tensors, the same bits on every rank
        All contiguous and of one dtype. Works inside CUDA graphs, once it has run before.
        """
        self.check()
        return self.box.sum_add_norm(aligned(partial), bias, residual, weight, bias_ln, eps, pdl)

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """All-gather: x (...) -> (size, ...), rank 0's first; x of up to a mailbox's size.

        Of any dtype, but a 32-bit word of all ones arrives as 0xfffffffe, on every rank alike.
        """
        self.check()
        return self.box.gather(aligned(x), self.pdl)

    @staticmethod
    def bytes_out(nbytes: int, size: int) -> float:
        return (size - 1) * nbytes  # each peer gets all of it

    def check(self) -> None:
        self.box.check()

    def close(self) -> None:
        self.box = None


def add_norm(total: torch.Tensor, bias: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor,
             bias_ln: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    """What follows an all-reduce in GPT-2, in plain torch: the twin of the fused kernel.

    total (T, D), the sum over the ranks; -> normed (T, D), new_residual (T, D)
    """
    residual = residual + (total + bias)
    return F.layer_norm(residual, residual.shape[-1:], weight, bias_ln, eps), residual


class Mailbox:
    """One rank's mailbox, uint8 (2 slots, size senders, rows, ROW_BYTES), full of EMPTY, and its peers' addresses.

    Ranks may be processes on GPUs of their own, or, in tests, streams of one process on one GPU.
    `failed` is the number, from 1, of a peer that was waited for in vain, and 0 while all is well; `alarm` is its
    copy on the host. After it nobody waits any more: a dead peer costs one timeout, not one for every call of a graph.
    """

    def __init__(self, buffer: torch.Tensor, rank: int, addresses: list[int], rows: int, timeout: float):
        self.buffer, self.rank, self.size, self.rows, self.timeout = buffer, rank, len(addresses), rows, timeout
        self.peers = torch.tensor(addresses, dtype=torch.int64, device=buffer.device)
        self.parity = torch.zeros(rows, dtype=torch.int32, device=buffer.device)  # the slot that is next
        self.failed = torch.zeros(1, dtype=torch.int32, device=buffer.device)
        self.alarm = torch.zeros(1, dtype=torch.int32, pin_memory=True)
        self.multiprocessors = torch.cuda.get_device_properties(buffer.device).multi_processor_count

    def check(self) -> None:
        """Raise RankError if a peer was waited for in vain. Waits for nothing."""
        if sender := int(self.alarm[0]):
            raise RankError(f"rank {self.rank}: rank {sender - 1} sent nothing for {self.timeout:.0f} s; results since "
                            "then are wrong")

    def sum(self, x: torch.Tensor, pdl: bool = False) -> torch.Tensor:
        """The sum of x over the ranks, written into x."""
        from .push_kernels import push_all_reduce

        rows, block = self._cut(x)
        push_all_reduce[self._grid(rows, block)](x, x, x.nbytes // 16, rows, **self._rest(block, pdl))
        return x

    def gather(self, x: torch.Tensor, pdl: bool = False) -> torch.Tensor:
        """x of every rank: (...) -> (size, ...)."""
        from .push_kernels import push_all_gather

        rows, block = self._cut(x)
        vectors = -(-x.nbytes // 16)
        out = x.new_empty(self.size, vectors * 16 // x.element_size())
        push_all_gather[self._grid(rows, block)](x, out, vectors, rows, **self._rest(block, pdl))
        return out[:, : x.numel()].view(self.size, *x.shape)

    def sum_add_norm(self, x, bias, residual, weight, bias_ln, eps, pdl=False) -> tuple[torch.Tensor, torch.Tensor]:
        """`add_norm` of the sum of x (T, D) over the ranks; a row is a token."""
        from .push_kernels import push_add_norm

        rows, width = x.shape
        normed, new_residual = torch.empty_like(x), torch.empty_like(x)
        block = 1 << (width * x.element_size() // 16 - 1).bit_length()  # the power of two that holds a token
        push_add_norm[self._grid(rows, block)](x, bias, residual, weight, bias_ln, normed, new_residual, eps, rows,
                                               D=width, **self._rest(block, pdl))
        return normed, new_residual

    @staticmethod
    def _cut(x: torch.Tensor) -> tuple[int, int]:
        """(rows, 16-byte vectors a row) of a flat tensor."""
        row_bytes = SMALL_ROW_BYTES if x.nbytes <= SMALL_ROW_BYTES * SMALL_ROWS else ROW_BYTES
        return -(-x.nbytes // row_bytes), row_bytes // 16

    def _grid(self, rows: int, block: int) -> tuple[int]:
        """A program for each row, but no more than run at once (they wait for their peers'); those loop.

        A multiprocessor has 65,536 registers; a thread takes up to 64 of them at four ranks, up to 128 at eight.
        """
        threads = self.multiprocessors * (1024 if self.size <= 4 else 512)
        return (min(rows, threads // (32 * self._warps(block))),)

    @staticmethod
    def _warps(block: int) -> int:
        return max(1, min(16, block // 32))  # a thread for each vector

    def _rest(self, block: int, pdl: bool) -> dict:
        """The arguments that all kernels take, and how to launch them."""
        return dict(peers=self.peers, parity=self.parity, failed=self.failed, alarm=self.alarm,
                    timeout=int(self.timeout * 1e9), RANK=self.rank, SIZE=self.size, ROWS=self.rows,
                    ROW_BYTES=ROW_BYTES, BLOCK=block, PDL=pdl, num_warps=self._warps(block),
                    **({"launch_pdl": True} if pdl else {}))
