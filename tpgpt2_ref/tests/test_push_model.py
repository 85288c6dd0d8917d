"""push's and two_shot_push's protocols as a state machine: a search through every order of events, and random walks."""
from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpgpt2_ref.parallel.all_reduce.push_model import search, walk


@pytest.mark.parametrize("setting", [dict(words=2, calls=3), dict(words=1, calls=6), dict(ranks=3, words=1, calls=2),
                                     dict(slots=3, empty="next", words=2, calls=3),
                                     dict(sums=1, words=1, calls=5)], ids=str)
def test_no_order_of_events_loses_or_mixes_data(setting):
    verdict = search(**setting)
    assert verdict.fault is None
    assert verdict.states > 100


@pytest.mark.parametrize("setting", [
    dict(slots=1),
    dict(slots=2, empty="next", words=1, calls=4),  # that is what a third slot is for
    dict(slots=2, boundary=False, words=1, calls=4),  # that is what a kernel's end is for
    dict(slots=1, sums=2, words=1, calls=3),  # two shots: the parts need two slots, the sums one
    dict(slots=2, sums=2, boundary=False, words=1, calls=4),
], ids=str)
def test_the_search_finds_what_is_wrong_with_less(setting):
    verdict = search(**setting)
    assert "overwrites a word of call 0 that is still needed" in verdict.fault
    assert len(verdict.path) > 3  # and says how it came to it


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), ranks=st.integers(2, 4), words=st.integers(1, 2), sums=st.integers(0, 1))
def test_orders_drawn_at_random_among_more_ranks(seed, ranks, words, sums):
    assert walk(seed, ranks=ranks, words=words, calls=4, sums=sums).fault is None
    faults = [walk(seed + i, ranks=ranks, words=words, calls=4, slots=1, sums=sums).fault for i in range(5)]
    assert any("overwrites a word" in fault for fault in faults if fault)  # such draws do find what is wrong


@pytest.mark.parametrize("sums", [0, 1])
def test_an_order_among_eight_ranks(sums):
    assert walk(3, ranks=8, words=1, calls=3, sums=sums).fault is None
