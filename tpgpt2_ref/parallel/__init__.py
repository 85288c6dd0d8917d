"""Tensor parallelism. `collectives.py` (Diagram 3) is the only door to torch.distributed."""
from .collectives import all_gather, all_reduce, broadcast, reduce_scatter, split_tensor_along_last_dim
from .embedding import ParallelLMHead, VocabParallelEmbedding
from .linear import ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from .world import World

__all__ = ["World", "all_gather", "all_reduce", "broadcast", "reduce_scatter", "split_tensor_along_last_dim",
           "ColumnParallelLinear", "QKVParallelLinear", "RowParallelLinear",
           "VocabParallelEmbedding", "ParallelLMHead"]
