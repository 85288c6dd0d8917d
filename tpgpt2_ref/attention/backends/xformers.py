"""XFORMERS: Meta's memory-efficient attention (Rabe and Staats 2021, arXiv 2112.05682; Lefaudeux et al. 2022).

A prefill goes to whichever operator xFormers itself picks. A decode step goes to its split-KV Triton operator, which
reads pages as long as its tile of keys is no larger than a page, and takes head sizes 32, 64, 128 and 256. Everything
else is gathered from the pages first, and is not for CUDA graphs: its masks are made from Python lists.
"""
from __future__ import annotations

import ctypes
import math
from importlib.util import find_spec
from pathlib import Path

import torch

from .base import AttentionBackend, import_package
from .gather import gather, gathered_bytes, pack


class XFormers(AttentionBackend):
    name = "XFORMERS"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.fmha = fmha = self.load()
        self.bias = import_package("xformers.ops.fmha.attn_bias")
        splitk = import_package("xformers.ops.fmha.triton_splitk")
        self.split_kv = type("SplitKV", (splitk.FwOp,), {"BLOCK_N": math.gcd(self.block_size, 64)})
        self.attend = fmha.memory_efficient_attention_forward
        self.reads_pages = self.cuda_graphs = self.head_size in (32, 64, 128, 256)

    @classmethod
    def load(cls):
        preload_cuda_12()
        package = import_package("xformers.ops.fmha")
        if not package.cutlass.FwOp.is_available() and not package.flash.FwOp.is_available():
            raise ImportError("xformers imports, but none of its operators was built for this PyTorch")
        return package

    def scratch(self, rows, longest):
        return 0 if self.reads_pages else gathered_bytes(self, rows * longest)

    def build(self, meta):
        """(mask, pages to gather or None)."""
        if meta.is_decode and self.reads_pages:
            return self._paged_mask(meta), None
        lengths, device = meta.query_start_loc.diff().tolist(), meta.seq_lens.device
        if meta.no_context:
            return self.bias.BlockDiagonalCausalMask.from_seqlens(lengths, device=device), None
        return self.bias.BlockDiagonalCausalFromBottomRightMask.from_seqlens(
            lengths, meta.seq_lens.tolist(), device=device), pack(meta)

    def forward(self, q, k, v, kv_cache, meta):
        mask, packed = meta.kernel
        op = None  # xFormers chooses
        if meta.is_decode and self.reads_pages:
            (k, v), op = kv_cache.flatten(1, 2), self.split_kv  # (slots, heads, head_size) each
        elif packed is not None:
            k, v = (x[: mask.k_seqinfo.seqstart_py[-1]] for x in gather(kv_cache, packed))  # without the spare rows
        return self.attend(q[None], k[None], v[None], mask, scale=self.scale, op=op)[0]

    def _paged_mask(self, meta):
        """As `from_seqlens` would make it, but from tensors that are on the GPU already, as a CUDA graph needs it."""
        table = meta.block_table[:, : -(-meta.max_seq_len // self.block_size)]
        width, one_each = table.shape[1] * self.block_size, list(range(meta.num_seqs + 1))
        queries = self.bias._SeqLenInfo(meta.query_start_loc, max_seqlen=1, min_seqlen=1, seqstart_py=one_each)
        keys = self.bias._PaddedSeqLenInfo(
            meta.query_start_loc * width, max_seqlen=meta.max_seq_len, min_seqlen=1,
            seqstart_py=[i * width for i in one_each], seqlen=meta.seq_lens, seqlen_py=[width] * meta.num_seqs,
            padding=width)
        return self.bias.PagedBlockDiagonalCausalWithOffsetPaddedKeysMask(queries, keys, table, self.block_size)


def preload_cuda_12() -> None:
    """xFormers' wheel links CUDA 12's runtime. On a PyTorch for CUDA 13 it loads only if that library already is."""
    if torch.version.cuda and torch.version.cuda.startswith("13") and (spec := find_spec("nvidia")):
        for folder in spec.submodule_search_locations:
            library = Path(folder) / "cuda_runtime" / "lib" / "libcudart.so.12"
            if library.exists():
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
