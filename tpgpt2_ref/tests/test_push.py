"""push's and two_shot_push's kernels on one GPU: all ranks are streams of one process, each with its own mailbox."""
from __future__ import annotations

from functools import partial

import pytest
import torch

from tpgpt2_ref.bench.stopwatch import microseconds
from tpgpt2_ref.errors import RankError
from tpgpt2_ref.parallel.all_reduce import push
from tpgpt2_ref.parallel.all_reduce.two_shot_push import TwoShotMailbox
from tpgpt2_ref.tests.test_all_reduce import DTYPES, EPS, TOKEN, assert_sum, numbers


class Ranks:
    """`size` mailboxes on one GPU, each with a stream of its own. Call `each(f)`: f(mailbox) on every stream."""

    def __init__(self, size: int, timeout: float = 5.0, rows: int = 256, box=push.Mailbox):
        buffers = [torch.full((3 * size * rows * push.ROW_BYTES,), 0xFF, dtype=torch.uint8, device="cuda")
                   for _ in range(size)]
        addresses = [b.data_ptr() for b in buffers]
        self.boxes = [box(b, rank, addresses, rows, timeout) for rank, b in enumerate(buffers)]
        self.streams = [torch.cuda.Stream() for _ in range(size)]

    def each(self, call) -> list:
        """Run a call on every rank, side by side; works while a CUDA graph is captured."""
        return self.interleaved([call])[0]

    def interleaved(self, calls) -> list[list]:
        """Some calls in a row, a list of the ranks' results for each; no rank waits for another between them."""
        here = torch.cuda.current_stream()
        for stream in self.streams:
            stream.wait_stream(here)
        out = []
        for call in calls:
            out.append([])
            for rank, box in enumerate(self.boxes):
                with torch.cuda.stream(self.streams[rank]):
                    out[-1].append(call(box))
        for stream in self.streams:
            here.wait_stream(stream)
        return out

    def all_well(self):
        torch.cuda.synchronize()
        return all(int(box.alarm[0]) == int(box.failed[0]) == 0 for box in self.boxes)


@pytest.fixture
def ranks():
    """ranks(size, *calls): mailboxes whose kernels for these calls are loaded. Loading one while a peer's kernel
    waits for it would never end, so each rank first runs alone, in mailboxes that give up at once."""
    def make(size, *calls, **kwargs):
        for call in calls:
            for box in Ranks(size, **{**kwargs, "timeout": 1e-3}).boxes:
                call(box)
                torch.cuda.synchronize()
        return Ranks(size, **kwargs)

    return make


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [2, 3, 4])
@pytest.mark.parametrize("box", [push.Mailbox, TwoShotMailbox])
def test_push_sums(ranks, box, size, dtype):
    def warm(box):
        for n in (1536, 300_000):
            box.sum(torch.zeros(n // 4, device="cuda").view(getattr(torch, dtype)))

    group = ranks(size, warm, box=box)
    # both kinds of row, full and not; the programs of all ranks must fit on this one GPU
    for nbytes in (16, 1536, 6144, 98_304, 262_144, 262_160, 1_000_000):
        n = nbytes // getattr(torch, dtype).itemsize
        for seed in range(3):  # each slot, and the first one again
            inputs = [numbers(n, dtype=dtype, seed=10 * seed + r) for r in range(size)]
            got = group.each(lambda box: box.sum(inputs[box.rank].clone()))  # noqa: B023
            assert group.all_well()
            assert_sum(got, inputs, dtype)


@pytest.mark.gpu
def test_push_carries_the_word_that_means_empty(ranks):
    """A NaN whose bits are EMPTY's must arrive as a NaN, not be waited for."""
    group = ranks(2, lambda box: box.sum(torch.zeros(8, device="cuda")))
    inputs = [torch.full((8,), -1, dtype=torch.int32, device="cuda").view(torch.float32), torch.ones(8, device="cuda")]
    got = group.each(lambda box: box.sum(inputs[box.rank].clone()))
    assert group.all_well()
    assert all(g.isnan().all() for g in got)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("size", [2, 4])
def test_push_in_a_cuda_graph_replayed_with_other_data(ranks, size, dtype):
    """An odd number of calls in the graph, so that each replay starts with the other slot."""
    group = ranks(size, lambda box: box.sum(numbers(TOKEN, dtype=dtype)))
    inputs = [numbers(8, TOKEN, dtype=dtype, seed=r) for r in range(size)]

    def three(box):
        x = inputs[box.rank]
        return [box.sum(x.clone()), box.sum(x[:1].clone()), box.sum(x * 2)]

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = group.each(three)
    for replay in range(50):
        for r in range(size):
            inputs[r].copy_(numbers(8, TOKEN, dtype=dtype, seed=100 * replay + r))
        graph.replay()
        assert group.all_well()
        for call, sent in enumerate([inputs, [x[:1] for x in inputs], [x * 2 for x in inputs]]):
            assert_sum([results[r][call] for r in range(size)], sent, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("pdl", [False, True], ids=["plain", "pdl"])
@pytest.mark.parametrize("box", [push.Mailbox, TwoShotMailbox])
def test_push_races(ranks, box, pdl):
    """600 calls of mixed sizes in a row, each rank held up at random, nothing waited for in between."""
    group = ranks(2, *[lambda box, n=n: box.sum(torch.zeros(n, device="cuda"), pdl) for n in (384, 90_000)],
                  box=box)
    g = torch.Generator().manual_seed(1)
    rows = [(1, 5, 40, 90)[i] for i in torch.randint(4, (600,), generator=g)]
    delays = (torch.rand(600, 2, generator=g) ** 4 * 200_000 - 100).int().tolist()  # cycles: many none, some 0.1 ms
    tables = [numbers(90, 1024, dtype="float32", seed=r) for r in range(2)]
    sent = [[t[:n] + call for t in tables] for call, n in enumerate(rows)]
    kept = [[x.clone() for x in xs] for xs in sent]

    def held_up(call, box):
        if delays[call][box.rank] > 0:
            torch.cuda._sleep(delays[call][box.rank])
        return box.sum(sent[call][box.rank], pdl)

    results = group.interleaved([partial(held_up, call) for call in range(600)])
    assert group.all_well()
    for got, inputs in zip(results, kept, strict=True):
        assert_sum(got, inputs, "float32")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.int64, torch.bfloat16])
def test_push_gathers(ranks, dtype):
    group = ranks(3, lambda box: box.gather(torch.zeros(8, device="cuda", dtype=dtype)))
    for n in (1, 3, 8, 64, 1000, 30_000):
        inputs = [torch.arange(n, device="cuda").add(1000 * r).to(dtype) for r in range(3)]
        for _ in range(3):
            got = group.each(lambda box: box.gather(inputs[box.rank]))  # noqa: B023
            assert group.all_well()
            assert all(torch.equal(g, torch.stack(inputs)) for g in got)


@pytest.mark.gpu
@pytest.mark.alone
def test_a_silent_peer_costs_one_timeout_and_the_bytes_that_crossed_are_counted(ranks):
    """Rank 0 runs alone. What it sent lies in rank 1's mailbox, and it can be counted."""
    lonely = ranks(2, lambda box: box.sum(torch.zeros(384, device="cuda")), timeout=0.2)
    algorithm = object.__new__(push.PushAllReduce)
    algorithm.box, algorithm.pdl = lonely.boxes[0], False
    x = torch.ones(TOKEN, dtype=torch.float16, device="cuda")
    algorithm(x)
    torch.cuda.synchronize()
    arrived = lonely.boxes[1].buffer.view(torch.int32) != -1
    assert int(arrived.sum()) * 4 == x.nbytes == algorithm.bytes_out(x.nbytes, 2)
    with pytest.raises(RankError, match="rank 0: rank 1 sent nothing for"):
        algorithm(x)
    # a graph goes on like this; it must not wait again
    assert microseconds(lambda: [algorithm.box.sum(x) for _ in range(20)], x.device) < 100_000


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [64, TOKEN, 1600])
def test_fused_is_its_twin(ranks, width, dtype):
    weights = [numbers(width, dtype=dtype, seed=s) for s in range(3)]

    def call(box, x, residual):
        return box.sum_add_norm(x, weights[0], residual, weights[1], weights[2], 1e-5)

    group = ranks(2, lambda box: call(box, *[numbers(1, width, dtype=dtype)] * 2))
    for tokens in (1, 2, 33, 200):
        partials = [numbers(tokens, width, dtype=dtype, seed=r) for r in range(2)]
        residual = numbers(tokens, width, dtype=dtype, seed=9)
        got = group.each(lambda box: call(box, partials[box.rank], residual))  # noqa: B023
        assert group.all_well()
        total = partials[0].float() + partials[1].float()  # the twin, in fp32
        plain = push.add_norm(total, *[t.float() for t in (weights[0], residual, weights[1], weights[2])], 1e-5)
        for i in range(2):
            assert torch.equal(got[0][i], got[1][i])
            assert torch.allclose(got[0][i].float(), plain[i], rtol=2 * EPS[dtype], atol=16 * EPS["float32"])
