"""The cluster kernels of one decode step with their parameters, which stay where they are: a graph can hold them."""
from __future__ import annotations

import ctypes
from typing import Callable

import torch

from ..state import DecodeState
from .shape import THREADS, Shape

POINTER, U32, U64, FLOAT = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_float


class Source(ctypes.Structure):
    _fields_ = [("slots", POINTER), ("count", U32), ("ids", POINTER), ("wte", POINTER), ("wpe", POINTER)]


class Turn(ctypes.Structure):
    _fields_ = [("step", POINTER), ("kernel", U32), ("kernels", U32), ("failed", POINTER), ("patience", U64)]


TYPES = {"from": Source, "turn": Turn, "values": U64, "table_stride": U32, "first": U32, "first_token": U32,
         "length": U32, "vocabulary": U32, "eps": FLOAT}
FIELDS = {  # in the order of each source's `struct Params`; pointers, where TYPES does not say otherwise
    "embed": "to turn ids positions wte wpe first_token",
    "attention": "from to turn c_attn c_attn_sums c_proj c_proj_bias norm_weight cache values table positions "
                 "table_stride first eps",
    "mlp": "from to turn c_fc c_fc_sums c_proj c_proj_bias norm_weight positions first eps",
    "head": "from turn wte norm_weight norm_bias positions seeds temperature keys ended found ids live tokens length "
            "first_token vocabulary eps",
}


def kernel_names(ranks: int) -> tuple[str, ...]:
    """The kernels of a step. One rank looks its token up itself; several do it together."""
    return ("attention", "mlp", "head") if ranks == 1 else tuple(FIELDS)


class Stream:
    """What the cluster kernels of a model share: where the residual stream stands between them, and which step it is.

    buffer     this rank's, `nbytes(shape)` bytes or more, of ones: two sets of slots, used in turn, and the ranks' keys
    addresses  of each rank's buffer as this rank sees it
    patience   seconds after which a contribution that does not come is given up
    """

    def __init__(self, buffer: torch.Tensor, addresses: list[int], patience: float = 30.0):
        self.buffer, self.addresses, self.patience = buffer, addresses, patience
        self.counts = torch.zeros(3, dtype=torch.int32, device=buffer.device)
        # steps so far; blocks of the head that have ended; 1 + the slot that was waited for in vain, or 0
        self.step, self.ended, self.failed = self.counts
        self.sums = {}

    @staticmethod
    def nbytes(shape: Shape) -> int:
        return 2 * shape.set_bytes + shape.ranks * shape.batch * 16

    def sums_of(self, linear, norm) -> torch.Tensor:
        """(2, N) float32: W g and W b + c, what LayerNorm leaves to do behind a product; see `product.cuh`."""
        if linear not in self.sums:
            w, g, b = linear.weight.float(), norm.weight.float(), norm.bias.float()
            self.sums[linear] = torch.stack([w @ g, w @ b + linear.bias.float()])
        return self.sums[linear]


class ClusterStep:
    """A step of `state`'s rows on one rank.

    load  (kernel, its constants) -> the compiled kernel: `nvrtc.compiled`, or the emulator's
    """

    def __init__(self, model, kv_caches: list[torch.Tensor], state: DecodeState, stream: Stream, load: Callable):
        self.model, self.state, self.stream, self.load = model, state, stream, load
        self.kv_caches = kv_caches  # the parameters hold only addresses
        self.shape = shape = Shape.of(model, state.batch, state.block_size)
        self.keys = torch.empty(shape.grid("head"), state.batch, dtype=torch.int64, device=state.ids.device)
        self.kernels = {}
        self.calls: list[tuple] = []  # (kernel, how to launch it), in order
        if shape.ranks > 1:
            self._embed()
        for i, (block, kv_cache) in enumerate(zip(model.h, kv_caches)):
            self._attention(block, kv_cache, first=i == 0)
            self._mlp(block)
        self._head()

    def __call__(self, pdl: bool = True) -> None:
        """Enqueue the step: it leaves the next token of every row in `state`."""
        for i, (kernel, launch) in enumerate(self.calls):  # the first one waits for all that was enqueued before
            kernel.launch(**launch, pdl=pdl and i > 0)

    def _embed(self):
        model, state = self.model, self.state
        self._call("embed", ids=state.ids, positions=state.positions, wte=model.wte.weight, wpe=model.wpe.weight,
                   first_token=model.wte.start)

    def _attention(self, block, kv_cache, first: bool):
        layer, state, shape = block.attn, self.state, self.shape
        self._call("attention", (1 if first else shape.clusters) * shape.ranks, c_attn=layer.c_attn.weight,
                   c_attn_sums=self.stream.sums_of(layer.c_attn, block.ln_1), **self._projection(layer.c_proj),
                   norm_weight=block.ln_1.weight, eps=block.ln_1.eps, cache=kv_cache,
                   values=kv_cache.stride(0) * kv_cache.element_size(), table=state.block_table,
                   table_stride=state.block_table.stride(0), positions=state.positions, embed=first)

    def _mlp(self, block):
        mlp, shape = block.mlp, self.shape
        self._call("mlp", shape.ranks * shape.heads, c_fc=mlp.c_fc.weight,
                   c_fc_sums=self.stream.sums_of(mlp.c_fc, block.ln_2), **self._projection(mlp.c_proj),
                   norm_weight=block.ln_2.weight, eps=block.ln_2.eps, positions=self.state.positions)

    def _head(self):
        head, norm, state, shape = self.model.lm_head, self.model.ln_f, self.state, self.shape
        found = (POINTER * shape.ranks)(*(address + 2 * shape.set_bytes for address in self.stream.addresses))
        self._call("head", shape.ranks * shape.clusters, wte=head.weight, norm_weight=norm.weight, norm_bias=norm.bias,
                   eps=norm.eps, positions=state.positions, seeds=state.seeds, temperature=state.sampling,
                   keys=self.keys, ended=self.stream.ended, found=found, ids=state.ids, live=state.live,
                   tokens=state.tokens, length=state.tokens.shape[1], first_token=head.start,
                   vocabulary=head.vocab_size)

    def _projection(self, linear):
        return {"c_proj": linear.weight, "c_proj_bias": linear.bias, "first": int(self.shape.rank == 0)}

    def _call(self, name: str, count: int = 0, embed: bool = False, **values):
        """Add a kernel, which reads what the one before it wrote, and writes what the next one reads."""
        shape, stream = self.shape, self.stream
        number = len(self.calls) + (shape.ranks == 1)  # the embedding is number 0, where it is a kernel
        source = Source(self._set(stream.addresses[shape.rank], number + 1), count)
        if embed and shape.ranks == 1:
            tables = self.state.ids, self.model.wte.weight, self.model.wpe.weight
            source = Source(None, 0, *(t.data_ptr() for t in tables))
        turn = Turn(stream.step.data_ptr(), number + 1, shape.kernels, stream.failed.data_ptr(),
                    int(stream.patience * 1e9))
        sink = (POINTER * shape.ranks)(*(self._set(address, number) for address in stream.addresses))
        values |= {"from": source, "to": sink, "turn": turn}
        fields = [(field, TYPES.get(field, type(sink) if field in ("to", "found") else POINTER))
                  for field in FIELDS[name].split()]
        plain = {field: v.data_ptr() if isinstance(v, torch.Tensor) else v for field, v in values.items()}
        params = type("Params", (ctypes.Structure,), {"_fields_": fields})(*(plain[field] for field, _ in fields))
        if name not in self.kernels:
            self.kernels[name] = self.load(name, shape.defines(name))
        kernel = self.kernels[name]
        self.calls.append((kernel, dict(grid=shape.grid(name), cluster=shape.blocks(name), threads=THREADS,
                                        shared=kernel.constant("shared_bytes"), params=params)))

    def _set(self, address: int, number: int) -> int:
        """The set that kernel `number` writes; the one before it wrote the other."""
        return address + number % 2 * self.shape.set_bytes
