"""`free_bytes` of each GPU are left for the KV cache. Write `largest_batch(layers, heads, d, context, n, itemsize,
free_bytes)`: how many sequences of `context` tokens fit at once on n ranks.

The cache comes in pages of 16 tokens. A page holds keys and values of all layers, for this rank's heads (n divides
them). One page is never handed out: rows of a batch that hold no sequence write there.
"""
HINTS = ("Bytes of a page: 2 (keys, values) * layers * 16 tokens * heads on this rank * d * itemsize.",
         "How many pages does the memory hold, and how many does one sequence take? Round the one down, the other up.")
RIGHT = "Two ranks hold twice the sequences, and more: the weights that left made room as well."


def start(layers, heads, d, context, n, itemsize, free_bytes):
    # ->  sequences
    ...


def solution(layers, heads, d, context, n, itemsize, free_bytes):
    page = 2 * layers * 16 * (heads // n) * d * itemsize
    pages = free_bytes // page - 1                       # one is never handed out
    return pages // -(-context // 16)


def of(page_bytes, free_bytes, pages_each, kept=1):
    return (free_bytes // page_bytes - kept) // pages_each


def keys_alone(layers, heads, d, context, n, itemsize, free_bytes):
    return of(layers * 16 * (heads // n) * d * itemsize, free_bytes, -(-context // 16))


def all_heads(layers, heads, d, context, n, itemsize, free_bytes):
    return of(2 * layers * 16 * heads * d * itemsize, free_bytes, -(-context // 16))


def no_pages(layers, heads, d, context, n, itemsize, free_bytes):
    return free_bytes // (2 * layers * context * (heads // n) * d * itemsize)


def one_layer(layers, heads, d, context, n, itemsize, free_bytes):
    return of(2 * 16 * (heads // n) * d * itemsize, free_bytes, -(-context // 16))


def every_page(layers, heads, d, context, n, itemsize, free_bytes):
    return of(2 * layers * 16 * (heads // n) * d * itemsize, free_bytes, -(-context // 16), kept=0)


MISTAKES = {
    keys_alone: "You count the keys. The values take as much again.",
    all_heads: "You count all {heads} heads on every rank. A rank keeps the keys and values of its own heads only.",
    one_layer: "You count one layer. Each of the {layers} layers has keys and values of its own.",
    no_pages: "You count tokens. A sequence takes whole pages of 16: {context} tokens need the last one too.",
    every_page: "One page is never handed out. Here it would be the last one needed.",
}


def cases(draw, n):
    for exact in (False, True):
        case = {"layers": draw.integer(2, 48), "heads": 4 * draw.integer(2, 6), "d": 64,
                "context": 16 * draw.integer(2, 12) + 1, "n": draw.choice([2, 4]), "itemsize": 2}
        page = 2 * case["layers"] * 16 * (case["heads"] // case["n"]) * 64 * 2
        pages = (case["context"] // 16 + 1) * draw.integer(100, 200)
        yield {**case, "free_bytes": page * (pages if exact else pages + 1) + draw.integer(0, page - 1)}
