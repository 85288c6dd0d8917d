"""The board without ranks: what is wrong with the posts of several, and two boards that agree or don't."""
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpgpt2_ref.parallel.board import Board
from tpgpt2_ref.parallel.posts import OutOfStep, Phase, Post, State, circle, trouble
from tpgpt2_ref.parallel.recorder import LAST, posts_of, remembered

OPS = st.tuples(st.sampled_from(["all_reduce", "barrier"]), st.sampled_from(["(2,)", "(3,)"]))


def state(ops, phase=Phase.ENDED, waiting=False):
    posts = tuple(Post(n, op, "float32", shape, line=n) for n, (op, shape) in enumerate(ops, 1))
    return State(1, phase, posts, posts[-1] if waiting else None)


@given(st.lists(st.lists(OPS, max_size=4), min_size=2, max_size=3))
def test_only_the_same_collectives_are_no_trouble(by_rank):
    said = trouble({rank: state(ops) for rank, ops in enumerate(by_rank)}, 1)
    assert (said is None) == all(ops == by_rank[0] for ops in by_rank)
    if said:  # while they run, what is only late is no trouble yet
        running = trouble({rank: state(ops, Phase.RUNNING) for rank, ops in enumerate(by_rank)}, 1)
        late = all(len(set(ops)) == 1 for ops in zip(*by_rank)) and all(
            ops == max(by_rank, key=len)[:len(ops)] for ops in by_rank)
        assert (running is None) == late


def test_words():
    one, other = ("all_reduce", "(2,)"), ("all_reduce", "(3,)")
    assert trouble({0: state([one, one, one], Phase.RUNNING, waiting=True), 1: state([one, one])}, 1) == \
        "rank 0 waits in all_reduce #3, float32 (2,), line 3; rank 1 ended its cell after #2"
    assert trouble({0: state([one]), 1: state([other]), 2: state([one])}, 1) == \
        "#1 is all_reduce of (2,) on ranks 0, 2 (line 1) and of (3,) on rank 1 (line 1)"
    assert trouble({0: state([one]), 1: State()}, 1, absent=(1,)) == \
        "rank 0 called all_reduce #1, float32 (2,), line 1; rank 1 does not run this cell"


def test_ranks_that_wait_for_each_other_in_different_groups():
    def waits(channel, members):
        post = Post(1, "barrier", "", "", channel=channel, members=members)
        return State(1, Phase.RUNNING, (post,), post)

    states = {0: waits("ranks 0, 1", (0, 1)), 1: waits("ranks 1, 2", (1, 2)), 2: waits("ranks 0, 2", (0, 2))}
    assert trouble(states, 1) is None
    assert circle(states, 1).startswith("rank 0 waits in barrier #1 of ranks 0, 1; rank 1 waits in")
    assert circle({**states, 2: State(1, Phase.RUNNING)}, 1) is None  # it may still come


def entry(number, group="0", op="nccl:all_reduce", sizes=((4,),), dtype="Float", at=10, p2p=False):
    """As PyTorch's flight recorder has it (2.11, NCCL)."""
    return {"collective_seq_id": number, "process_group": [group, "default_pg"], "profiling_name": op, "is_p2p": p2p,
            "input_sizes": sizes, "input_dtypes": [dtype], "time_created_ns": at, "state": "scheduled"}


def test_the_flight_recorder_as_posts():
    """Numbers begin with the cell, messages are left out, groups are told apart."""
    groups = {"0": {"ranks": "[0, 1, 2]"}, "1": {"ranks": "[0, 2]"}}
    said = {"pg_config": groups, "entries": [
        entry(1, at=3), entry(2, at=4), entry(3), entry(1, "1", "nccl:_all_gather_base", dtype="BFloat16"),
        entry(0, p2p=True), entry(4, sizes=((2, 3),)), entry(5, op="nccl:barrier", sizes=()),
        entry(6, op="nccl:all_gather_into_tensor_coalesced"), entry(7, op="nccl:reduce_scatter_tensor_coalesced"),
        entry(8, op="nccl:allreduce_coalesced"), entry(9, op="nccl:_reduce_oop"), entry(10, op="nccl:reduce_scatter")]}
    posts = posts_of(said, size=3, began=5)
    assert [str(p) for p in posts] == [
        "all_reduce #1, float32 (4,)", "all_gather #1 of ranks 0, 2, bfloat16 (4,)", "all_reduce #2, float32 (2, 3)",
        "barrier #3, float32", "all_gather #4, float32 (4,)", "reduce_scatter #5, float32 (4,)",
        "all_reduce #6, float32 (4,)", "reduce #7, float32 (4,)", "reduce_scatter #8, float32"]
    assert posts[1].members == (0, 2) and not posts_of({"entries": []}, 3, 0)


@settings(deadline=None)
@given(st.lists(st.integers(1, 500), min_size=2, max_size=3))
def test_ranks_that_remember_different_collectives_are_compared_where_all_do(counts):
    """Only the last of a rank are remembered; what is too old on one rank is no difference."""
    said = {r: [Post(n, "barrier", "", "") for n in range(1, count + 1)][-LAST:] for r, count in enumerate(counts)}
    states = {rank: State(1, Phase.RUNNING, posts) for rank, posts in remembered(said).items()}
    assert trouble(states, 1) is None
    if max(counts) > min(counts):
        behind = counts.index(min(counts))
        assert "ended its cell" in trouble({**states, behind: State(1, Phase.ENDED, states[behind].posts)}, 1)


def test_two_boards(tmp_path):
    """Nobody returns from `post` before both have posted the same; a mismatch is refused on both, and they go on."""
    Board.create(tmp_path, 2)
    said = {}

    def rank(r):
        board = Board(tmp_path, r, 2)
        board.begin(cell=1)
        for _ in range(600):
            board.post("all_reduce", "float32", "(2,)")
        for shape in (f"({r},)", "(9,)"):
            try:
                board.post("all_reduce", "float32", shape)
            except OutOfStep as e:
                said.setdefault(shape, str(e))
        board.end()
        with pytest.raises(OutOfStep, match="whose cell has ended"):
            board.post("barrier")

    threads = [threading.Thread(target=rank, args=(r,)) for r in range(2)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert said == {f"({r},)": "#601 is all_reduce of (0,) on rank 0 and of (1,) on rank 1" for r in range(2)}
