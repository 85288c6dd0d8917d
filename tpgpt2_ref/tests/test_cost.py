"""The cost model of collectives on curves whose truth is known."""
from __future__ import annotations

import random

import pytest

from tpgpt2_ref.cost import collectives as cost
from tpgpt2_ref.errors import UserError

from .imagined import SIZES, curve, truth


def test_least_squares_finds_what_made_the_numbers_and_nothing_negative():
    features = [(1.0, n, n * n) for n in range(1, 9)]
    found, error = cost.least_squares(features, [3 + 2 * a for _, a, _ in features])
    assert found == pytest.approx((3, 2, 0), abs=1e-9) and error < 1e-18
    falling, _ = cost.least_squares([(1.0, n) for n in range(1, 9)], [10.0 - n for n in range(1, 9)])
    assert min(falling) >= 0


def test_of_two_terms_that_say_the_same_the_first_is_taken():
    """At one batch size flops are weights times a constant: rounding must not decide which of them has the price."""
    dice = random.Random(4)
    for _ in range(50):
        features = [(1.0, n, 3 * n) for n in dice.sample(range(1, 99), 8)]
        found, _ = cost.least_squares(features, [5 + n * dice.uniform(1, 2) for _, n, _ in features])
        assert found[1] > 0 and found[2] == 0


def test_pieces_find_the_protocols():
    pieces = cost.fit_pieces([(n, truth(n)) for n in SIZES])
    assert len(pieces) == 2 and pieces[1]["from_bytes"] in range(32769, 65537)
    assert [p["alpha_us"] for p in pieces] == pytest.approx([10, 35], rel=0.01)
    assert [1e-3 / p["beta_us_per_byte"] for p in pieces] == pytest.approx([2, 300], rel=0.01)
    ends = [cost.evaluate(pieces, n) for n in (32768, 49152, 65536)]  # nobody saw where it jumps: half-way between
    assert ends[1] == pytest.approx((ends[0] + ends[2]) / 2) and ends == pytest.approx(
        [truth(32768), (truth(32768) + truth(65536)) / 2, truth(65536)], rel=0.02)
    one = cost.fit_pieces([(n, 12 + n / 100e3) for n in SIZES])
    assert len(one) == 1 and one[0]["from_bytes"] == 256


def test_a_line_is_the_least_squares_of_its_points():
    dice = random.Random(3)
    for _ in range(100):
        points = [(n, dice.uniform(1, 100)) for n in sorted(dice.sample(SIZES, 6))]
        given = [dice.uniform(0, 2) for _ in points]
        (alpha, beta), error = cost.least_squares([(1.0, n) for n, _ in points], [us for _, us in points], given)
        rows = [(1 / us, n / us, 1 - g / us) for (n, us), g in zip(points, given)]
        got = cost._line(*(sum(r[i] * r[k] for r in rows) for i, k in ((0, 0), (0, 1), (1, 1), (0, 2), (1, 2), (2, 2))))
        assert got == pytest.approx((error, alpha, beta), rel=1e-6, abs=1e-12)


def test_the_error_is_of_sizes_that_were_not_fitted():
    """Spoil one size in two: the fit on the others stays perfect, and the error says how far off the spoiled are."""
    rows = curve(truth)
    for row in rows[1::2]:
        row["us_median"] *= 1.25
    (first, *_) = cost.fit_collectives(rows)
    assert first["heldout_median_error"] == pytest.approx(0.2, abs=0.02) and first["heldout_points"] == 11
    assert first["heldout_median_error_low"] <= 0.2 <= first["heldout_median_error_high"] + 1e-3


def test_noise_of_4_percent_stays_within_the_bar():
    (first, *_) = cost.fit_collectives(curve(truth, noise=0.04))
    assert first["heldout_median_error"] <= 0.08 and first["heldout_worst_error"] <= 0.25


def test_starting_a_sample_is_no_part_of_a_call():
    """One call of 16 MB carries the whole start, a hundred small ones share it; the pieces are the calls' own."""
    def calls(n):
        return min(100, max(1, 2**24 // n))  # as in the first sweeps, whose rows don't say

    rows = curve(lambda n: truth(n) + 40 / calls(n))
    model = cost.fit_collectives(rows + curve(lambda n: 3 + n / 50e3 + 40 / calls(n), path="push"))
    assert model[0]["start_us"] == pytest.approx(40, rel=0.2) and model[0]["heldout_worst_error"] <= 0.25
    for path, us in (("nccl", truth), ("push", lambda n: 3 + n / 50e3)):
        for n in (1024, 2**24, 2**29):
            assert cost.predict(model, "all_reduce", n, 2, path)["us"] == pytest.approx(us(n), rel=0.05)
    says = [{**r, "calls": 1, "us_median": truth(r["bytes"]) + 40} for r in rows]  # a row's own count comes first
    assert cost.fit_collectives(says)[0]["start_us"] <= 50


def test_a_sizes_own_spread_stands_beside_its_error():
    rows = curve(truth)
    rows[5].update(us_median=2 * rows[5]["us_median"], us_p10=rows[5]["us_p10"], us_p90=3 * rows[5]["us_p90"])
    (first, *_) = cost.fit_collectives(rows)
    assert first["heldout_worst_error"] == pytest.approx(0.5, abs=0.02)
    assert first["heldout_worst_spread"] == 0.5 and first["heldout_median_spread"] == 0


def test_too_few_sizes_are_refused():
    with pytest.raises(UserError, match="at least 6 sizes"):
        cost.fit_collectives(curve(truth)[:5])


def test_predict_takes_the_fastest_path_or_the_one_named():
    model = cost.fit_collectives(curve(truth) + curve(lambda n: 4 + n / 50e3, path="one_shot")
                                 + curve(lambda n: 1.0, path="bare nccl") + curve(lambda n: 1.0, path="gloo/two-hosts")
                                 + curve(lambda n: 5 * truth(n), path="nccl/sockets"))
    assert cost.predict(model, "all_reduce", 1024, 2)["path"] == "one_shot"
    big = cost.predict(model, "all_reduce", 2**28, 2)
    assert big["path"] == "nccl" and big["us"] == pytest.approx(truth(2**28), rel=0.02) and not big["on_paper"]
    assert cost.predict(model, "all_reduce", 2**28, 2, "nccl/sockets")["us"] == pytest.approx(5 * big["us"], rel=0.02)
    assert cost.predict(model, "all_reduce", 2**33, 2)["beyond_measured_sizes"]
    with pytest.raises(UserError, match="no all_reduce over rccl; it has .*all_reduce over nccl,"):
        cost.predict(model, "all_reduce", 1024, 2, "rccl")


def test_a_world_that_was_not_measured_is_a_ring_on_paper():
    """Built by hand: a ring of n ranks takes 2(n-1) steps of 1 us + bytes/n at 100 GB/s."""
    def ring(n):
        return lambda b: 2 * (n - 1) * (1 + b / n / 100e3)

    model = cost.fit_collectives(curve(ring(2)))
    for n in (4, 1024):
        got = cost.predict(model, "all_reduce", 2**20, n)
        assert got["on_paper"] and got["measured_world"] == 2 and got["us"] == pytest.approx(ring(n)(2**20), rel=0.01)
