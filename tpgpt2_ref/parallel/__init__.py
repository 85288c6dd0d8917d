"""Tensor parallelism.

    world.py         World: rank, size, device, group, passed along
    collectives.py   Diagram 3: all_gather, all_reduce, split; the only door to torch.distributed
    all_reduce/      the all-reduce algorithms behind that door
    linear.py        ColumnParallelLinear, QKVParallelLinear, RowParallelLinear
    embedding.py     VocabParallelEmbedding, ParallelLMHead
    launch.py        N ranks on this machine, without torchrun; private.py the folder where they meet
    board.py         what each rank runs, readable by all: ranks agree before data moves; posts.py what is wrong;
                     watched.py torch.distributed's own calls on it; recorder.py what PyTorch's flight recorder knows
    times.py         where the seconds of a start go
"""
