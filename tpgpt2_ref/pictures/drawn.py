"""Diagrams 1, 2 and 3 as they were drawn, box by box, with the number of each claim and, beside it, what is so."""
from __future__ import annotations

from .shapes import Arrow, Box, Cells, Drawing, Heading, Lanes, Line

L = Line

ONE = Drawing("1", "1 Attention kernel selection", (
    "From top to bottom: the model makes an attention layer, which asks get_attn_backend. That looks at a global "
    "override, then at an environment variable, then lets the platform decide. On CUDA a question about SM 90 forks to "
    "FlashAttention 3 or to other backends; the chosen class is loaded, binds its kernels, and is ready."), (
    Box("GPT2 model initialization", (L("`gpt2.py: GPT2Attention.__init__()`"),), "GPT2Attention.__init__"),
    Arrow(),
    Box("Attention layer creation", (
        L("`attention/layer.py: Attention.__init__()`", (1,),
          "since 0.16: model_executor/layers/attention/attention.py"),
        L("`num_heads = 12`", (2,), "12 / TP a rank: 6 of them at TP=2"),
        L("`head_size = 64`", (3,)),
        L("`dtype = torch.float16`", (4,), "by default bfloat16 from SM 80 on"),
        L("`cache_config.block_size = 16`", (5,)),
        L('`cache_config.cache_dtype = "auto"`', (6,))), "Attention.__init__"),
    Arrow("get_attn_backend()"),
    Box("Priority 1: check global force override", (L("forced_attn_backend = None?  → continue", (7,),
        "gone in 0.13: --attention-backend takes its place"),), "Priority 1: global force override"),
    Arrow(),
    Box("Priority 2: check environment variable", (
        L("VLLM_ATTENTION_BACKEND = None?  → continue", (7,), "since 0.15 nothing reads the variable"),
        L("(FLASH_ATTN, XFORMERS, FLEX_ATTENTION)", (8,), "XFORMERS is gone since 0.12")),
        "Priority 2: VLLM_ATTENTION_BACKEND"),
    Arrow(),
    Box("Priority 3: platform-specific auto-detection", (
        L("`current_platform.get_attn_backend_cls()`", (9,)),
        L("GPU capability (CUDA, ROCm, etc.)"),
        L("Head size support (32, 64, 96, 128, 160, 192, 224, 256)", (10,), "since 0.12 any multiple of 8 up to 256"),
        L("Dtype support (float16, bfloat16)", (11,)),
        L("CUDA version (for FA3 requires 12.3+)", (12,), "asked when the wheel is built, not when it runs"),
        L("SM capability (FA3 requires SM 90)", (13,), "0.11 let 8.0 and 8.7 through as well")),
        "Priority 3: current_platform.get_attn_backend_cls()"),
    Arrow("Decision tree for CUDA"),
    Box("Is CUDA available and device SM 90 (Hopper)?", (), "Is CUDA available and device SM 90?", (14,),
        "no fork: one backend, FLASH_ATTN, picks its version 2, 3 or 4"),
    Arrow(arms=2),
    Lanes((
        Box("FlashAttention V3", (
            L("`._vllm_fa3_C.abi3.so`", (17,), "no dot in front: _vllm_fa3_C.abi3.so"),
            L("(CUDA 12.3+, SM 90)"),
            L("Special features:"), L("FP8 support, MLA support"),
            L("Max perf on Hopper", (18,), "measured: not in every case")), tag="Yes"),
        Box("Check other backends", (
            L("FlashAttention V2"), L("`._vllm_fa2_C.abi3.so`", (17,)), L("FlexAttention"),
            L("Xformers", (15,), "never chosen by itself"), L("Triton"), L("or fallback"),
            L("fp32, or a head size that does not fit: FlexAttention, from 0.11.2 on Triton", (16,), added=True)),
            "or fallback", tag="No"))),
    Arrow(arms=1),
    Box("`resolve_obj_by_qualname()`", (L("Load actual backend class", (19,)),)),
    Arrow(),
    Box("Runtime kernel binding", (
        L("`from vllm.vllm_flash_attn import`"), L("`flash_attn_varlen_func`", (20,)), L("`get_scheduler_metadata`"),
        L("(Compiled CUDA kernels from .so files)")), "flash_attn_varlen_func"),
    Arrow(),
    Box("Attention.impl initialized with selected backend", (L("Ready for forward() calls", (21,)),), "Attention.impl"),
))

GATHERS = "no collective here: each rank attends its own 6 heads, from its own cache"

TWO = Drawing("2", "2 GPT2 forward pass", (
    "Both GPUs hold the hidden states. Step 1, a column-parallel layer, makes each one's half of q, k and v. Step 2 "
    "cuts that in three. Step 3 is attention. Step 4, a row-parallel layer, leaves a partial result on each GPU, and "
    "an all-reduce adds the two, so that both hold the same output."), (
    Heading("Input preparation"),
    Box("`hidden_states: (batch, seq_len, D)`", (
        L("where D = hidden_size = 768"),
        L("Broadcast to both workers: replicated on GPU 0 and GPU 1", (23,),
          "each looks up its half of the vocabulary; an all-reduce joins them")),
        "Input preparation: hidden_states on both", (22,), "(T, D): the tokens of all sequences in one row"),
    Heading("Step 1: QKVParallelLinear",
            L("(ColumnParallel - scatter output)", (25,), "nothing is scattered: 0 bytes")),
    Box("`self.c_attn(hidden_states)`", (), "Step 1: QKVParallelLinear (c_attn)", (24,), inner=(
        Box("GPU 0", (L("`A_0  (D × 3D/2)`"), L("`qkv_0 = hidden @ A_0`"), L("`(..., 3D/2)`")),
            "Step 1: QKVParallelLinear (c_attn)", rank=0),
        Box("GPU 1", (L("`A_1  (D × 3D/2)`"), L("`qkv_1 = hidden @ A_1`"), L("`(..., 3D/2)`")),
            "Step 1: QKVParallelLinear (c_attn)", rank=1))),
    Arrow(),
    Box("NO AllGather (gather_output=False)", (
        L("qkv_0 stays on GPU 0, qkv_1 on GPU 1. Each worker has a PARTIAL tensor"),), "gather_output=False", (26,)),
    Heading("Step 2: Split QKV"),
    Box("`q, k, v = qkv.chunk(3, dim=-1)`", (), "Step 2: qkv.chunk(3)", inner=(
        Box("GPU 0: first half", (L("`q_0: (..., D/4)`", (27,), "(..., D/2)"),
                                  L("`k_0: (..., D/4)`", (27,), "(..., D/2)"),
                                  L("`v_0: (..., D/4)`", (27,), "(..., D/2)")), "Step 2: qkv.chunk(3)", rank=0),
        Box("GPU 1: second half", (L("`q_1: (..., D/4)`", (27,), "(..., D/2)"),
                                   L("`k_1: (..., D/4)`", (27,), "(..., D/2)"),
                                   L("`v_1: (..., D/4)`", (27,), "(..., D/2)")), "Step 2: qkv.chunk(3)", rank=1))),
    Heading("Step 3: Attention computation",
            L("(flash_attn_varlen_func - may gather internally)", (28,), GATHERS)),
    Box("`attn_output = self.attn(q, k, v)`", (
        L("May AllGather q, k, v tensors; compute attention on full inputs", (28,)),
        L("Both workers have FULL output", (29,), "each holds (T, D/2), and not the same half")),
        "Step 3: self.attn(q, k, v)", inner=(
        Box("GPU 0", (L("attn_output_0 (gathered)", (29,), "heads 0 to 5"),), "Step 3: self.attn(q, k, v)", rank=0),
        Box("GPU 1", (L("attn_output_1 (gathered)", (29,), "heads 6 to 11"),), "Step 3: self.attn(q, k, v)", rank=1))),
    Heading("Step 4: RowParallelLinear",
            L("(Split input, reduce output)", (30,), "the input arrives split: no split runs")),
    Box("`self.c_proj(attn_output)`", (L("Input split (input_is_parallel=F)", (30,), "input_is_parallel=True"),),
        "Step 4: RowParallelLinear (c_proj)", inner=(
        Box("GPU 0", (L("`full[:,:,:D/2]`", (30,), "its own heads, as they are"), L("`A_0  (D/2 × D)`", (31,)),
                      L("`out_0 = attn_output_0 @ A_0`"), L("+ bias (only on rank 0)", (32,)), L("`(..., D)`")),
            "Step 4: RowParallelLinear (c_proj)", rank=0),
        Box("GPU 1", (L("`full[:,:,D/2:]`", (30,), "its own heads, as they are"), L("`A_1  (D/2 × D)`", (31,)),
                      L("`out_1 = attn_output_1 @ A_1`"), L("`(..., D)`")),
            "Step 4: RowParallelLinear (c_proj)", rank=1))),
    Arrow(),
    Box("AllReduce(SUM)", (
        L("out_0 + out_1 on GPU 0 and on GPU 1: both have the SAME final output", (33,)),), "AllReduce(SUM)"),
    Arrow(),
    Box("Ready for next layer (norm, MLP)", (), "", (35,),
        "the block has a second pair, and a second all-reduce"),
    Box("MLP: c_fc, GELU, c_proj", (L("column parallel, GELU on each rank's half, row parallel, then AllReduce(SUM)"),),
        "Ready for next layer (norm, MLP)", (35,), added=True),
))


def before_after(op: str, name: str, before, after) -> tuple:
    """One operation of Diagram 3: two GPUs before, the operation, the same two after."""
    return (Lanes(tuple(Box(f"GPU {i}: {label}", (cells,), name, rank=i) for i, (label, cells) in enumerate(before))),
            Arrow(op),
            Lanes(tuple(Box(f"GPU {i}: {label}", (cells,), name, rank=i) for i, (label, cells) in enumerate(after))))


def _cells(values: str, *colours: str) -> Cells:
    return Cells(tuple(values.split()), colours)


A, B, NONE = "rank-0", "rank-1", "computing"
GATHERED, SUMMED = _cells("1 2 3 4", A, A, B, B), _cells("5 7 9", NONE, NONE, NONE)

THREE = Drawing("3", "3 Communication operations", (
    "Three operations, before and after. AllGather: each GPU's two values end up, side by side, on both. AllReduce: "
    "three values on each GPU are added one by one, and both get the sums. Split: a full tensor is cut in two halves, "
    "without communication."), (
    Heading("AllGather", L("(ColumnParallel with gather_output=True)", (36,))),
    *before_after("AllGather()", "AllGather", (("Tensor A", _cells("1 2", A, A)), ("Tensor C", _cells("3 4", B, B))),
                  (("Tensor A + C", GATHERED), ("Tensor A + C", GATHERED))),
    Box("Both workers have concatenated data", (L("[NCCL]", (34,),
        "by default vLLM's own kernel up to 8 MiB; NCCL beyond"),), "AllGather"),
    Heading("AllReduce", L("(RowParallel with reduce_results=True)", (37,))),
    *before_after("AllReduce(SUM)", "AllReduce", (("Tensor A", _cells("1 2 3", A, A, A)),
                                                 ("Tensor B", _cells("4 5 6", B, B, B))),
                  (("A + B", SUMMED), ("A + B", SUMMED))),
    Box("Both workers have summed data", (L("[NCCL]", (34,), "by default vLLM's own kernel up to 8 MiB; NCCL beyond"),
        L("Element-wise addition across all workers", (37,))), "AllReduce"),
    Heading("Split", L("(RowParallel input preparation)")),
    Box("GPU 0: full tensor on GPU 0", (_cells("A₁ A₂ B₁ B₂", A, A, B, B),), "split_tensor_along_last_dim()", (38,),
        "each rank must hold the full tensor already", rank=0),
    Arrow("split_tensor_along_last_dim(), no NCCL", arms=1),
    Lanes((Box("GPU 0: left half", (_cells("A₁ A₂", A, A),), "split_tensor_along_last_dim()", rank=0),
           Box("GPU 1: right half", (_cells("B₁ B₂", B, B),), "split_tensor_along_last_dim()", rank=1))),
    Box("Each worker has independent partition (no communication)", (), "split_tensor_along_last_dim()", (41,)),
))
