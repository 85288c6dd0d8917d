"""What recorded runs measured of each box: the bars of a diagram's third state. Nothing here is typed in."""
from __future__ import annotations

from statistics import median

from ..errors import UserError
from ..recorded import results
from .shapes import Bar, Lit

# Boxes that nothing runs for on a GPU: setting up, choosing, views of a tensor, and what already lies where it is.
SILENT = frozenset((
    "GPT2 model initialization", "Attention layer creation", "Priority 1: check global force override",
    "Priority 2: check environment variable", "Priority 3: platform-specific auto-detection",
    "Is CUDA available and device SM 90 (Hopper)?", "resolve_obj_by_qualname()", "Runtime kernel binding",
    "Attention.impl initialized with selected backend", "hidden_states: (batch, seq_len, D)",
    "NO AllGather (gather_output=False)", "Input broadcast", "Result",
    "q, k, v = qkv.chunk(3, dim=-1)", "Ready for next layer (norm, MLP)",
    "Each worker has independent partition (no communication)", "export VLLM_ATTENTION_BACKEND=…",
    "1. Programmatic force override  2. Environment variable  3. Auto-detection"))
STAGES = {"T1": "c_attn", "T2": "attention", "T3": "c_proj", "T4": "its sum", "mlp": "MLP"}


def lit(number: str) -> Lit | None:
    """The bars of one diagram by its boxes' titles; None where no run was recorded."""
    try:
        return OF[number]()
    except UserError:  # this run was not recorded
        return None


def run(name: str, machine: str) -> results.Run:
    return results.load(results.BOOK_RESULTS / machine / f"{name}.json")


def kernels() -> Lit:
    """Diagrams 1 and 5: one decode step's attention through each kernel that ran."""
    r = run("attention", "1x-nvidia-h200")
    rows = {row["backend"]: row["us_median"] for row in r.rows
            if (row["phase"], row["batch"], row["seq_len"], row["head_size"], row["dtype"]) ==
            ("decode", 8, 1024, 64, "bfloat16")}

    def bars(*names):
        return [Bar(name, rows[name], "µs", "computing") for name in names if name in rows]

    two, flex, others = bars("FLASH_ATTN_2"), bars("FLEX_ATTENTION"), bars("TRITON_ATTN", "XFORMERS")
    return Lit("attention of one decode step (8 sequences of 1,024 tokens, heads of 64, bfloat16), by kernel, on "
               + r.label, {"FlashAttention V3": bars("FLASH_ATTN_3"), "Check other backends": [*two, *flex, *others],
                           "FlashAttn V3": bars("FLASH_ATTN_3"), "FlashAttn V2": two, "FlexAttention": flex,
                           "Triton / xFormers": others})


def stages(graph: bool = True) -> dict[str, dict[int, tuple[float, float]]]:
    """{stage: {rank: (own work, waiting) in us}}: the median over the layers of a recorded decode step."""
    rows = [row for row in run("timeline", "2x-nvidia-h200").rows
            if (row["plan"], row["phase"], row["graph"]) == ("shipped", "decode", graph)]
    found = {}
    for stage in STAGES:
        for rank in (0, 1):
            mine = [row for row in rows if row["stage"] == stage and row["rank"] == rank and row["us"]]
            sums = [row for row in mine if row["kind"] == "collective"]
            if stage == "mlp":
                found.setdefault("mlp's sum", {})[rank] = (median(row["transfer_us"] for row in sums),
                                                           median(row["wait_us"] for row in sums))
                mine, sums = [row for row in mine if row["kind"] == "compute"], []
            found.setdefault(stage, {})[rank] = (
                (median(row["transfer_us"] for row in sums), median(row["wait_us"] for row in sums)) if sums else
                (median(row["us"] for row in mine), 0.0))
    return found


def forward() -> Lit:
    """Diagrams 2 and 4: one layer of a decode step on two GPUs, stage by stage."""
    r, took = run("timeline", "2x-nvidia-h200"), stages()

    def ranks(stage):
        return [Bar(f"GPU {rank}", took[stage][rank][0], "µs", f"rank-{rank}") for rank in (0, 1)]

    def summed(stage):
        return [Bar(f"GPU {rank}: {what}", us, "µs", colour) for rank in (0, 1)
                for what, us, colour in zip(("moves", "waits"), took[stage][rank], ("moving", "waiting"))]

    return Lit("median layer of one decode step in a CUDA graph (GPT-2, 8 sequences of 512 tokens, bfloat16), on "
               + r.label, {
                   "self.c_attn(hidden_states)": ranks("T1"), "attn_output = self.attn(q, k, v)": ranks("T2"),
                   "self.c_proj(attn_output)": ranks("T3"), "AllReduce(SUM)": summed("T4"),
                   "ColumnParallel (c_attn): compute, no gather": ranks("T1"),
                   "Attention (may need internal communication)": ranks("T2"),
                   "RowParallel (c_proj): split input, compute": ranks("T3"), "AllReduce": summed("T4")})


def collectives(op: str, size: int) -> list[Bar]:
    rows = [row for row in run("collectives", "2x-nvidia-h200").rows
            if (row["op"], row["bytes"], row["graph"], row["world"]) == (op, size, True, 2)
            and row["path"] in ("push", "one_shot", "two_shot", "nccl")]
    rows.sort(key=lambda row: row["us_median"])
    return [Bar(row["path"], row["us_median"], "µs", "moving") for row in rows]


def operations() -> Lit:
    """Diagram 3: the same two operations, by each way to do them."""
    r = run("collectives", "2x-nvidia-h200")
    return Lit("one call of 2 KiB a rank in a CUDA graph, by way, on " + r.label, {
        "Both workers have concatenated data": collectives("all_gather", 2048),
        "Both workers have summed data": collectives("all_reduce", 2048)})


def network() -> Lit:
    """Diagram 6: the largest bus bandwidth that was measured over each link."""
    r = run("collectives", "2x-nvidia-h200")

    def best(path):
        found = [row["busbw_gb_per_s"] for row in r.rows if row["op"] == "all_reduce" and row["path"] == path]
        link = path.removeprefix("nccl").replace("/", ", ").replace("-", " ")
        return [Bar(f"NCCL{link}", max(found), "GB/s", "moving")] if found else []

    return Lit("largest bus bandwidth, one way, of an all-reduce of any size, between two GPUs of one host (over "
               "host memory and sockets NCCL was told to leave NVLink alone); on " + r.label,
               {"NVLink": best("nccl"), "PCIe Gen4": best("nccl/host-memory"),
                "100Gbps Ethernet": best("nccl/sockets")})


def costs() -> Lit:
    """The cost table: an all-reduce per call, and the share of a decode step that sums take."""
    r, took = run("collectives", "2x-nvidia-h200"), stages()
    layer = sum(max(own + wait for own, wait in took[stage].values()) for stage in took)
    sums = sum(max(own + wait for own, wait in took[stage].values()) for stage in ("T4", "mlp's sum"))
    return Lit("one call of 2 KiB a rank in a CUDA graph, by way; one layer's two sums as a share of its kernels; on "
               + r.label, {"RowParallel (c_proj)": collectives("all_reduce", 2048),
                           "Communication overhead: 5-15% of total inference time":
                               [Bar("sums, moving and waiting", 100 * sums / layer, "%", "moving")]})


OF = {"1": kernels, "2": forward, "3": operations, "4": forward, "5": kernels, "6": network, "cost": costs}
