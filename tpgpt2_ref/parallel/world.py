"""World: who am I, how many are we, where do my tensors live. One object, passed along, never global.

    World.single(device)        one process, no group
    World.join(device)          this process is one of N that torchrun (or `launch.py`) started
    with World.join(...) as w:  leaves the group in order when the block ends
"""
from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from datetime import timedelta
from weakref import WeakSet

import torch
import torch.distributed as dist

from ..errors import RankError, UserError
from ..trace import Trace
from .all_reduce import AllReduce, all_reduces
from .board import Board
from .times import mark
from .torchrun import Rank, master, torchrun_env
from .watched import watch


@dataclass(eq=False)
class World:
    """A rank's view of its tensor-parallel group.

    `all_reduces` are this world's all-reduce algorithms, fastest first; the first that takes a tensor sums it,
    and the last takes every tensor.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    group: dist.ProcessGroup | None = None
    all_reduces: tuple[AllReduce, ...] = ()
    beside: AllReduce | None = None  # who sums while products run; see `all_reduce_beside`
    trace: Trace | None = None
    board: Board | None = None  # where ranks agree on each collective: in notebooks and under --check
    imagined: bool = False  # see `imagine`
    timeout: float = 60.0  # seconds to wait for a rank that never comes
    before_close: WeakSet = field(default_factory=WeakSet)  # what holds CUDA graphs of this group's collectives

    @property
    def alone(self) -> bool:
        """Whether there is nobody to send anything to."""
        return self.size == 1 or self.imagined

    @property
    def backend(self) -> str:
        """"single", or the process group's own name: "nccl", "gloo", "fake"."""
        return "single" if self.group is None else dist.get_backend(self.group)

    @property
    def joined(self) -> bool:
        """Whether this world's group is still the one that this process is in."""
        return self.group is None or dist.is_initialized() and dist.group.WORLD is self.group

    @classmethod
    def single(cls, device: str | torch.device = "cpu") -> World:
        return cls(device=torch.device(device))

    def imagine(self, size: int) -> World:
        """Rank 0 of `size` ranks of which the others are not there: sums and gathers give back its own part.

        For the time of one rank's own work, which with the time of all ranks together tells what communication costs.
        """
        return replace(self, size=size, imagined=size > 1)

    @classmethod
    def join(cls, device: str = "cpu", timeout: float = 60.0, all_reduce: str = "auto") -> World:
        """Form the group that torchrun's variables describe: NCCL on GPUs, gloo on CPUs.

        device   "cpu" or "cuda" (each rank takes the GPU of its LOCAL_RANK)
        timeout  seconds after which a collective that some rank never joined is an error, not a wait
        all_reduce  "auto", or the name of one all-reduce algorithm (see `all_reduce/`)
        Raises UserError for a rank without a GPU or a port in use, RankError if the others never came.
        """
        env = torchrun_env()
        if env is None or env.size == 1 and env.meeting is None:
            return cls.single(f"cuda:{env.local_rank if env else 0}" if device == "cuda" else device)
        where = _device(env) if device == "cuda" else torch.device("cpu")
        mark(f"has its device, {where}")
        rank, size, meeting = env.rank, env.size, env.meeting
        at = str(meeting) if meeting else master()
        try:
            store = dist.FileStore(str(meeting / "store"), size) if meeting else _store(rank, at, timeout)
            dist.init_process_group("nccl" if device == "cuda" else "gloo", rank=rank, world_size=size, store=store,
                                    timeout=timedelta(seconds=timeout),
                                    device_id=where if device == "cuda" else None)
        except (dist.DistNetworkError, dist.DistStoreError) as e:
            if "EADDRINUSE" in str(e) or "address already in use" in str(e).lower():
                raise UserError(f"port {at.rpartition(':')[2]} is in use: set MASTER_PORT to a free one") from e
            raise RankError(f"rank {rank}: the group of {size} did not form at {at}: {str(e).splitlines()[0]}") from e
        mark("process group")
        world = cls(rank, size, where, dist.group.WORLD, timeout=timeout)
        if meeting and (meeting / "order.board").exists():
            world.board = Board(meeting, rank, size, patience=timeout)
            watch(world.board)
            world.board.begin(cell=1)
        world.all_reduces = all_reduces(world, all_reduce)
        mark("all-reduce algorithms")
        return world

    def learn_to_sum(self) -> None:
        """All algorithms that can run here, for a world that was joined with one. All ranks must call it."""
        self.all_reduces = all_reduces(self)

    def close(self):
        """Leave the group. CUDA graphs that hold collectives must be gone by then: they are dropped first."""
        if self.board is not None and self.group is not None:
            self.board.leave()
        for holder in list(self.before_close):
            holder.close()
        for algorithm in (*self.all_reduces, *filter(None, [self.beside])):
            algorithm.close()
        self.all_reduces, self.beside = (), None
        if self.board is not None:
            self.board.end()
        if self.group is not None:
            self.group = None
            dist.destroy_process_group()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def _device(env: Rank) -> torch.device:
    """The GPU of this rank, made the current one."""
    gpus = torch.cuda.device_count()
    if env.local_rank >= gpus and not (env.share_gpu and gpus):
        raise UserError(f"rank {env.rank} needs GPU {env.local_rank} of this host, which has {gpus}: "
                        f"lower --tp to {max(gpus, 1)}, or use --device cpu")
    device = torch.device("cuda", env.local_rank % gpus)
    torch.cuda.set_device(device)
    if env.share_gpu:
        # NCCL refuses two ranks on one GPU of one host: name each rank a host of its own, so that it goes over
        # sockets. It shows that the code is right, never how fast it is.
        os.environ["NCCL_HOSTID"] = f"rank{env.rank}"
        os.environ["TORCH_SYMM_MEM_ALLOW_OVERLAPPING_DEVICES"] = "1"
    return device


def _store(rank: int, at: str, timeout: float) -> dist.Store:
    """The store at MASTER_ADDR and MASTER_PORT, refused where another process is this rank already."""
    store, _, _ = next(dist.rendezvous("env://", timeout=timedelta(seconds=timeout)))
    if store.add(f"tpgpt2 rank {rank}", 1) > 1:
        raise UserError(f"another process is rank {rank} of the group at {at}: each group needs its own MASTER_PORT")
    return store
