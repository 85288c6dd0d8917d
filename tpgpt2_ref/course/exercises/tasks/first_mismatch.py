"""Two ranks hang. A flight recorder has kept what each one called, in order: two lists of (operation, shape), such as
("all_reduce", (9, 768)).

Write `first_mismatch(rank0, rank1)`: the index of the first call that the two don't share, or None if the lists are
the same. A rank that has no such call any more does not share it.
"""
HINTS = ("Go through both lists at once, to the end of the shorter one.",
         "If they agree so far and one is longer, its first call beyond the other's end is the one nobody joins.")
RIGHT = "All later entries are consequences. What a rank does *at* that index is where to look in the code."


def start(rank0, rank1):
    # two lists of (operation, shape)  ->  an index, or None
    ...


def solution(rank0, rank1):
    for i, (a, b) in enumerate(zip(rank0, rank1)):
        if a != b:
            return i
    return None if len(rank0) == len(rank1) else min(len(rank0), len(rank1))


def operations_only(rank0, rank1):
    for i, (a, b) in enumerate(zip(rank0, rank1)):
        if a[0] != b[0]:
            return i
    return None if len(rank0) == len(rank1) else min(len(rank0), len(rank1))


def shorter_only(rank0, rank1):
    return next((i for i, (a, b) in enumerate(zip(rank0, rank1)) if a != b), None)


def last_call(rank0, rank1):
    return None if rank0 == rank1 else min(len(rank0), len(rank1)) - 1


def from_one(rank0, rank1):
    found = solution(rank0, rank1)
    return None if found is None else found + 1


MISTAKES = {
    operations_only: "You compare the operations. Two sums of different shapes don't fit together either.",
    shorter_only: "Up to the end of the shorter list all is the same. The longer rank's next call is one that nobody "
                  "joins.",
    last_call: "You name the last call in the record. That is where a rank stands now; what went wrong is the first "
               "call that differs.",
    from_one: "Your index is one too large: the first entry has index 0.",
}


def cases(draw, n):
    def record():
        return [(draw.choice(["all_reduce", "all_gather"]), (draw.integer(2, 9), 768)) for _ in range(8)]

    both, at = record(), draw.integer(1, 5)
    yield {"rank0": both, "rank1": list(both)}
    yield {"rank0": both, "rank1": both[:at]}
    op, shape = both[at]
    yield {"rank0": both, "rank1": both[:at] + [(op, (shape[0] + 1, 768))] + both[at + 1:]}
    yield {"rank0": both, "rank1": both[:at] + [("barrier", ())] + both[at:-1]}
