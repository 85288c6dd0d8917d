"""Tensor parallelism. `collectives.py` (Diagram 3) is the only door to torch.distributed.

The names below are loaded when first used, so that starting ranks doesn't cost an import of torch.
"""
from importlib import import_module

_HOME = {
    "world": ["World"],
    "collectives": ["all_gather", "all_reduce", "barrier", "broadcast", "gather_objects", "reduce_scatter",
                    "split_tensor_along_last_dim"],
    "linear": ["ColumnParallelLinear", "QKVParallelLinear", "RowParallelLinear"],
    "embedding": ["VocabParallelEmbedding", "ParallelLMHead"],
}
__all__ = [name for names in _HOME.values() for name in names]


def __getattr__(name: str):
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f".{module}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
