"""`rows` is a timeline: one dict for each collective on each rank, with `rank`, `layer`, `start_us` (when the rank
entered it) and `end_us` (when it left).

An all-reduce ends for everybody when the last rank has come. Write `late_rank(rows)`: the rank that makes the others
wait.
"""
HINTS = ("Look at one `layer` at a time. Who waits for whom?",
         "The late rank enters last, and finds everybody there: its own bar is short.",
         "Sum over the layers how long after the first comer each rank enters. The largest sum is late.")
RIGHT = "The long bars belong to those who wait. Whoever optimises the longest bar optimises the wrong rank."


def start(rows):
    # rows: dicts with rank, layer, start_us, end_us  ->  a rank
    ...


def solution(rows):
    first = {}
    for row in rows:
        first[row["layer"]] = min(row["start_us"], first.get(row["layer"], row["start_us"]))
    late = {}
    for row in rows:
        late[row["rank"]] = late.get(row["rank"], 0) + row["start_us"] - first[row["layer"]]
    return max(late, key=late.get)


def longest_bars(rows):
    time = {}
    for row in rows:
        time[row["rank"]] = time.get(row["rank"], 0) + row["end_us"] - row["start_us"]
    return max(time, key=time.get)


def longest_bar(rows):
    return max(rows, key=lambda row: row["end_us"] - row["start_us"])["rank"]


def ends_last(rows):
    return max(rows, key=lambda row: row["end_us"])["rank"]


WAITS = ("You name the rank with the longest time in the collectives. It came early and waited: a long bar is "
         "waiting, not work. The late rank's bar is short.")
MISTAKES = {
    longest_bars: WAITS,
    longest_bar: WAITS,
    ends_last: "All ranks leave a sum at about the same time: who leaves last says nothing. Look at who enters last.",
}


def cases(draw, n):
    for n in (2, 2, 4, 4):
        late, rows, free = draw.integer(0, n - 1), [], [0.0] * n
        waits = next(r for r in range(n) if r != late)
        last = draw.choice([r for r in range(n) if r not in (late, waits)] or [waits])
        for layer in range(draw.integer(3, 6)):
            work = [draw.number(40, 44) for _ in range(n)]
            work[late] += draw.number(60, 300)
            work[waits] -= 8
            enter = [begin + w for begin, w in zip(free, work)]
            free = [max(enter) + 9 + (0.5 if rank == last else draw.number(0, 0.3)) for rank in range(n)]
            rows += [{"rank": r, "layer": f"h.{layer}.attn.c_proj", "start_us": enter[r], "end_us": free[r]}
                     for r in range(n)]
        yield {"rows": rows}
