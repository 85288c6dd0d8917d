"""Diagrams 4, 5 and 6 and the cost table as they were drawn, with the number of each claim and what is so."""
from __future__ import annotations

from .shapes import Arrow, Box, Drawing, Heading, Lanes, Line

L = Line


def time(tag: str, title: str, left: tuple, right: tuple, claims=(), now: str = "", lines=(), added=False) -> Box:
    """One moment of Diagram 4: what it is, and what each GPU has."""
    return Box(title, lines, "T0 to T5", claims, now, tag=tag, added=added, inner=(
        Box("GPU 0", left, "T0 to T5", rank=0), Box("GPU 1", right, "T0 to T5", rank=1)))


FOUR = Drawing("4", "4 Forward pass on a time axis", (
    "Six moments, T0 to T5, with a lane for each of two GPUs: input, column-parallel layer, attention, row-parallel "
    "layer, all-reduce, result. Two sync points are marked: an all-gather at T2 and an all-reduce at T4."), (
    time("T0", "Input broadcast", (L("hidden_states (replicated)"),), (L("hidden_states (replicated)"),), (23,),
         "an embedding's all-reduce makes them", (L("(no comm needed, pre-broadcast)", (23,)),)),
    time("T1", "ColumnParallel (c_attn): compute, no gather", (L("→ qkv_0 (local, no sync)"),),
         (L("→ qkv_1 (local, no sync)"),), (26,)),
    time("T2", "Attention (may need internal communication)",
         (L("attn_out (both synchronized)", (29,), "heads 0 to 5"),),
         (L("attn_out (same)", (29,), "heads 6 to 11"),), (28,), "it needs none",
         (L("↔ Sync point: AllGather ↔", (39,), "no sync: nothing is gathered"),)),
    time("T3", "RowParallel (c_proj): split input, compute",
         (L("left partition → output_0", (30,), "own heads → output_0"),),
         (L("right partition → output_1", (30,), "own heads → output_1"),)),
    Box("AllReduce", (L("↔ Sync point: AllReduce ↔  (combine: sum all)"),), "Sync points", (33,), tag="T4"),
    time("T5", "Result", (L("final_output (same on all)", (33,)),), (L("final_output (same on all)", (33,)),)),
    Box("MLP, then its own AllReduce", (L("a second pair of layers, and a second sync point, in every block"),),
        "Sync points", (35, 39), tag="T6", added=True),
    Heading("Sync points (NCCL collective operations)"),
    Box("T2: AllGather, T4: AllReduce", (L("AllGather may be implicit in the attention implementation", (28,)),),
        "Sync points", (39,), "two all-reduces a block, one after each c_proj"),
    Box("Communication overhead", (
        L("AllGather: bandwidth-bound (concatenation)", (40,), "small messages of both are bound by latency"),
        L("AllReduce: bandwidth + latency (reduction across network)", (40,)),
        L("Split: no communication (local slicing)", (41,))), "The drawing"),
))

SIZES = "32, 64, 96, 128, 160, 192, 224, 256"


def entry(sizes: Line, dtypes: Line, gpu: tuple, backend: tuple, name: str) -> Box:
    return Box(name, (), "The matrix", columns=(("head size", (sizes,)), ("dtype", (dtypes,)), ("GPU", gpu),
                                                ("backend", backend)))


FIVE = Drawing("5", "5 Backend decision matrix", (
    "A table: head sizes, dtypes and GPU to the left, the attention backend to the right. Hopper gets FlashAttention "
    "3, older NVIDIA GPUs FlashAttention 2, anything else on NVIDIA FlexAttention, AMD Triton or xFormers, a CPU "
    "naive attention. Below: the environment variable's values, and three priorities."), (
    Heading("Head size, dtype, GPU: which backend?"),
    entry(L(SIZES, (42,), "0.12 on: multiples of 8 up to 256"), L("float16, bfloat16"), (L("NVIDIA Hopper (SM 90)"),),
          (L("(CUDA 12.3+) .abi3.so"), L("✓ BEST")), "FlashAttn V3"),
    entry(L(SIZES), L("float16, bfloat16"), (L("NVIDIA Pre-Hopper (SM 80, 89)", (43,), "8.x, and 12.x too"),),
          (L(".abi3.so"), L("✓ Good")), "FlashAttn V2"),
    entry(L("Any"), L("Any", (44,), "fp16, bf16, fp32"), (L("NVIDIA (fallback)"),), (L("(Triton)"), L("✓ Fallback")),
          "FlexAttention"),
    entry(L("32, 64, 128, 160, 192, 224, 256", (45,), "from 32 on"), L("float16, bfloat16"), (L("AMD (ROCm)"),),
          (L("✓ Limited", (45,), "Triton; xFormers is never taken"),), "Triton / xFormers"),
    entry(L("Any", (46,), "eight sizes"), L("Any", (46,), "fp16, bf16, fp32"), (L("CPU (inference)"),),
          (L("(naive attn)", (46,), "a kernel in C++ over the paged cache"), L("✓ Slow")), "CPU Fallback"),
    Heading("Environment variable overrides"),
    Box("`export VLLM_ATTENTION_BACKEND=…`", (
        L("`FLASH_ATTN, FLEX_ATTENTION, XFORMERS`", (47,), "not read any more since 0.15"),
        L("`TRITON`", (48,), "TRITON_ATTN; TRITON raises ValueError")), "Selection priority"),
    Heading("Selection priority"),
    Box("1. Programmatic force override  2. Environment variable  3. Auto-detection", (), "Selection priority", (49,),
        "today: the option by kind of layer, the option, the platform"),
))


def machines(left: str, right: str, name: str) -> Lanes:
    return Lanes((Box("Machine 1, GPU 0", (L(left),), name, rank=0),
                  Box("Machine 2, GPU 1", (L(right),), name, rank=1)))


SIX = Drawing("6", "6 NCCL operations on the network", (
    "Two machines with one GPU each, joined by NVLink or Ethernet. After an all-gather both hold both tensors, after "
    "an all-reduce both hold the sum. Below: bandwidths of NVLink, PCIe and Ethernet."), (
    Heading("Multiple machines with NVLink/Ethernet"),
    machines("Tensor_0", "Tensor_1", "Machine 1, Machine 2"),
    Box("↔ NVLink / Ethernet ↔", (), "NVLink / Ethernet", (50,),
        "NVLink stays inside a machine or a rack; between machines: InfiniBand, RoCE, TCP"),
    Heading("AllGather result"), machines("[Tensor_0 | Tensor_1]", "[Tensor_0 | Tensor_1]", "AllGather, AllReduce"),
    Heading("AllReduce result"), machines("Tensor_0 + Tensor_1", "Tensor_0 + Tensor_1", "AllGather, AllReduce"),
    Heading("Bandwidth utilization"),
    Box("NVLink", (L("600 GB/s (full duplex)", (51,),
                     "A100, both ways at once: 300 each way. H100, H200: 450 each way"),),
        "Bandwidth utilization"),
    Box("PCIe Gen4", (L("64 GB/s (full duplex)", (52,), "16 lanes, both ways at once: 31.5 each way"),),
        "Bandwidth utilization"),
    Box("100Gbps Ethernet", (L("12.5 GB/s", (53,)),), "Bandwidth utilization"),
))


def cost(title: str, kind: tuple, size: tuple, latency: tuple, name: str = "Latency impact") -> Box:
    return Box(title, (), name, columns=(("type", kind), ("data size", size), ("latency impact", latency)))


COST = Drawing("cost", "Cost table", (
    "A table of three operations with type, data size and latency: c_attn scatters and costs nothing, attention "
    "gathers q, k and v, c_proj all-reduces. Below: 2 to 3 collectives a forward pass, 5 to 15 percent of the time."),
    (
    Heading("Communication cost analysis (TP=2)"),
    cost("ColumnParallel (c_attn)", (L("Scatter (no comm)", (54,), "nothing"),), (L("~D*B (local)", (54,), "0 bytes"),),
         (L("None (no sync)"),)),
    cost("Attention (implicit)", (L("AllGather (gather q,k,v)", (55,), "nothing"),), (L("~3*D*B*S", (55,), "0 bytes"),),
         (L("~1-5 µs per element", (57,), "none"),)),
    cost("RowParallel (c_proj)", (L("AllReduce (sum)"),), (L("~D*B (full out)", (56,), "T · D · bytes of the dtype"),),
         (L("~1-5 µs per element", (57,), "a floor per call, then bytes / bandwidth"),)),
    Box("Where", (L("D = hidden_size (e.g., 768), B = batch_size, S = seq_length"),), "Latency impact"),
    Arrow(),
    Box("Total collective operations per forward pass: 2-3", (L("(depending on attention implementation)"),),
        "Total collectives per forward pass", (58,), "2L + 2 = 26 in GPT-2 of 12 layers"),
    Box("Communication overhead: 5-15% of total inference time", (
        L("(vs. 100% if purely sequential)", (60,), "one GPU communicates 0 %"),), "Communication overhead", (59,),
        "it depends on model, batch and algorithm: measure it"),
))
