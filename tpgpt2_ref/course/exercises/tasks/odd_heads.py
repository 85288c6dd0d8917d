"""GPT-2 XL has 25 heads. Two ranks can't have twelve and a half each.

Every rank's kernel must see the same number of heads, so the last rank gets empty ones, made of zeros. Write
`odd_heads(heads, rank, n)`: the pair (heads that each rank's kernel sees, real heads among them on this rank).
"""
HINTS = ("Round up: `-(-heads // n)` is what each rank's kernel sees.",
         "Rank r begins at head r times that. How many real heads are left from there? Never fewer than 0.")
RIGHT = "XL on two ranks computes 26 heads. The empty one multiplies zeros: it costs time and changes nothing."


def start(heads, rank, n):
    # heads: of the model; rank: 0 to n - 1  ->  (seen, real)
    ...


def solution(heads, rank, n):
    seen = -(-heads // n)
    real = min(seen, max(0, heads - rank * seen))
    return seen, real


def down(heads, rank, n):
    return heads // n, heads // n


def all_real(heads, rank, n):
    return -(-heads // n), -(-heads // n)


def uneven(heads, rank, n):
    own = heads // n + (rank < heads % n)
    return own, own


def negative(heads, rank, n):
    seen = -(-heads // n)
    return seen, min(seen, heads - rank * seen)


MISTAKES = {
    down: "You round down: {heads} heads on {n} ranks leave some head to nobody.",
    all_real: "You count every head as real. The ranks see more heads together than the model has.",
    uneven: "Your ranks see different numbers of heads. Ranks of one shape run one program: give each the larger "
            "number, and count the real ones apart.",
    negative: "A rank can be left with no real head at all, but not with fewer than none: rank {rank} of {n}, with "
              "{heads} heads.",
}


def cases(draw, n):
    for heads, n in ((25, 2), (12, 4), (25, 8), (draw.integer(9, 40), 7)):
        for rank in range(n):
            yield {"heads": heads, "rank": rank, "n": n}
