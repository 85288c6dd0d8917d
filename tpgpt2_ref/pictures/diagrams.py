"""Each box of the diagrams, and the code that it is: {diagram: {box: "module:attribute"}}.

A test resolves every one. `resolve` gives the object, `where` its file and line for a page that links to it.
"""
from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
DIAGRAMS: dict[str, dict[str, str]] = {
    "1 Attention kernel selection": {
        "GPT2Attention.__init__": "gpt2:GPT2Attention.__init__",
        "Attention.__init__": "attention.layer:Attention.__init__",
        "cache_config": "config:CacheConfig",
        "get_attn_backend()": "attention.selector:get_attn_backend",
        "Priority 1: global force override": "attention.selector:get_attn_backend",
        "Priority 2: VLLM_ATTENTION_BACKEND": "attention.selector:environment_backend",
        "Priority 3: current_platform.get_attn_backend_cls()": "attention.matrix:ORDER",
        "Is CUDA available and device SM 90?": "attention.platform:this_machine",
        "FlashAttention V3": "attention.backends.flash_attn_3:FlashAttention3",
        "FlashAttention V2": "attention.backends.flash_attn_2:FlashAttention2",
        "FlexAttention": "attention.backends.flex_attention:FlexAttention",
        "Xformers": "attention.backends.xformers:XFormers",
        "Triton": "attention.backends.triton_attn:TritonAttention",
        "or fallback": "attention.backends.naive:NaiveBackend",
        "resolve_obj_by_qualname()": "attention.selector:resolve",
        "get_scheduler_metadata": "attention.backends.flash_attn_3:FlashAttention3.build",
        "flash_attn_varlen_func": "attention.backends.flash_attn_3:FlashAttention3.forward",
        "Attention.impl": "attention.backends.base:AttentionBackend",
    },
    "2 GPT2 forward pass": {
        "Input preparation: hidden_states on both": "parallel.embedding:VocabParallelEmbedding",
        "Step 1: QKVParallelLinear (c_attn)": "parallel.linear:QKVParallelLinear",
        "gather_output=False": "parallel.linear:ColumnParallelLinear",
        "Step 2: qkv.chunk(3)": "gpt2:GPT2Attention.forward",
        "Step 3: self.attn(q, k, v)": "attention.layer:Attention.forward",
        "Step 4: RowParallelLinear (c_proj)": "parallel.linear:RowParallelLinear",
        "AllReduce(SUM)": "parallel.collectives:all_reduce",
        "Ready for next layer (norm, MLP)": "gpt2:GPT2Block.forward",
    },
    "3 Communication operations": {
        "AllGather": "parallel.collectives:all_gather",
        "AllReduce": "parallel.collectives:all_reduce",
        "split_tensor_along_last_dim()": "parallel.collectives:split_tensor_along_last_dim",
    },
    "4 Forward pass on a time axis": {
        "T0 to T5": "bench.timeline:record",
        "Sync points": "trace:Trace",
        "The drawing": "figures.timeline:timeline_layer",
    },
    "5 Backend decision matrix": {
        "The matrix": "attention.matrix:MATRIX",
        "The matrix as drawn": "attention.matrix:DIAGRAM_5",
        "Selection priority": "attention.selector:get_attn_backend",
    },
    "6 NCCL operations on the network": {
        "Machine 1, Machine 2": "bench.two_hosts:two_hosts",
        "NVLink / Ethernet": "bench.dial:DIAL",
        "Bandwidth utilization": "bench.dial:LIMITS",
        "AllGather, AllReduce": "bench.collectives:sweep",
    },
    "Cost table": {
        "Latency impact": "cost.collectives:fit_collectives",
        "Total collectives per forward pass": "cost.simulate:fake_forward",
        "Communication overhead": "cost.forward:forward",
    },
}


def resolve(target: str):
    """The object that "module:attribute" names, inside this package."""
    module, _, path = target.partition(":")
    found = import_module(f"tpgpt2_ref.{module}")
    for name in path.split("."):
        found = getattr(found, name)
    return found


def file_of(target: str) -> str:
    """The file of "module:attribute" inside the package, as its code page names it."""
    path = Path(*target.partition(":")[0].split("."))
    return f"{path.as_posix()}/__init__.py" if (PACKAGE / path).is_dir() else f"{path.as_posix()}.py"


def where(target: str) -> tuple[Path, int]:
    """(file, line) of a box's code; line 1 for data."""
    module = import_module(f"tpgpt2_ref.{target.partition(':')[0]}")
    try:
        return Path(module.__file__), inspect.getsourcelines(resolve(target))[1]
    except TypeError:  # data has no line of its own
        return Path(module.__file__), 1
