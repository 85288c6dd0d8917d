"""A forward pass of GPT-2 on n ranks, `tokens` new tokens of `sequences` sequences. How many bytes does one rank put
into its collectives?

Write `forward_bytes(layers, width, vocab, tokens, sequences, n, itemsize)`. Count every all-reduce by its tensor,
and the all-gather of the logits by this rank's part: one row a sequence. The vocabulary's rows are padded to a
multiple of 64 a rank.
"""
HINTS = ("A block sums twice, after attention and after the MLP. What is summed is (tokens, width) each time.",
         "One more sum stands before the first block: the embedding's.",
         "Rows of the vocabulary on a rank: round vocab / n up, then up to a multiple of 64.")
RIGHT = "For one token of GPT-2 small in bf16 the one gather outweighs all 25 sums together."


def start(layers, width, vocab, tokens, sequences, n, itemsize):
    # ->  bytes
    ...


def solution(layers, width, vocab, tokens, sequences, n, itemsize):
    sums = (2 * layers + 1) * tokens * width                # two a block, one for the embedding
    own = -(-vocab // n)                                    # rows of the vocabulary, rounded up
    rows = -(-own // 64) * 64                               # to a multiple of 64
    return (sums + sequences * rows) * itemsize


def without_embedding(layers, width, vocab, tokens, sequences, n, itemsize):
    return solution(layers, width, vocab, tokens, sequences, n, itemsize) - tokens * width * itemsize


def one_a_block(layers, width, vocab, tokens, sequences, n, itemsize):
    return solution(layers, width, vocab, tokens, sequences, n, itemsize) - layers * tokens * width * itemsize


def without_gather(layers, width, vocab, tokens, sequences, n, itemsize):
    return (2 * layers + 1) * tokens * width * itemsize


def whole_vocabulary(layers, width, vocab, tokens, sequences, n, itemsize):
    return ((2 * layers + 1) * tokens * width + sequences * vocab) * itemsize


def unpadded(layers, width, vocab, tokens, sequences, n, itemsize):
    return ((2 * layers + 1) * tokens * width + sequences * -(-vocab // n)) * itemsize


def every_token(layers, width, vocab, tokens, sequences, n, itemsize):
    return solution(layers, width, vocab, tokens, tokens, n, itemsize) if tokens != sequences else None


MISTAKES = {
    one_a_block: "You count one sum a block. The MLP has its own: Diagram 2 leaves it out.",
    without_embedding: "One sum is missing: the embedding's, before the first block.",
    without_gather: "The logits are missing: each rank scores its own part of the vocabulary, and all gather it.",
    whole_vocabulary: "A rank puts in its own part of the logits, a {n}th of the vocabulary, not all of it.",
    unpadded: "The vocabulary's rows on a rank are a multiple of 64: the padding is gathered too.",
    every_token: "Logits are needed for the last token of each sequence: one row a sequence, not one a token.",
}


def cases(draw, n):
    for n in (2, 4):
        sequences = draw.integer(2, 9)
        yield {"layers": draw.integer(3, 48), "width": 64 * draw.integer(6, 25),
               "vocab": 128 * draw.integer(30, 400) + 1, "tokens": sequences * draw.integer(5, 200),
               "sequences": sequences, "n": n, "itemsize": draw.choice([2, 4])}
