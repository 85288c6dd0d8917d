"""How fast can one layer's attention be at best, for a prompt of `tokens` tokens in one sequence? Each token looks at
itself and all before it.

Write `attention_floor(tokens, heads, d, itemsize, gb_per_s, tflops)`: microseconds. It must read q, k and v and write
its output, each (tokens, heads, d), once, at `gb_per_s`; and it must do the two matrix products at `tflops`. A good
kernel does both at the same time.
"""
HINTS = ("Bytes: four tensors. 1 GB/s is 1,000 bytes a microsecond.",
         "A product of (a, b) with (b, c) takes 2abc operations. There are two, q k^T and p v, and the causal mask "
         "leaves half of each.",
         "Both at the same time: the slower one decides. 1 TFLOP/s is a million operations a microsecond.")
RIGHT = "Short prompts wait for memory, long ones for arithmetic: the roofline's two sides."


def start(tokens, heads, d, itemsize, gb_per_s, tflops):
    # ->  microseconds
    ...


def solution(tokens, heads, d, itemsize, gb_per_s, tflops):
    nbytes = 4 * tokens * heads * d * itemsize               # q, k, v in; out
    flops = 2 * (2 * tokens * tokens * d) * heads / 2        # two products, half of them masked
    return max(nbytes / (gb_per_s * 1e3), flops / (tflops * 1e6))


def added(tokens, heads, d, itemsize, gb_per_s, tflops):
    return 4 * tokens * heads * d * itemsize / (gb_per_s * 1e3) + 2 * tokens**2 * d * heads / (tflops * 1e6)


def unmasked(tokens, heads, d, itemsize, gb_per_s, tflops):
    return max(4 * tokens * heads * d * itemsize / (gb_per_s * 1e3), 4 * tokens**2 * d * heads / (tflops * 1e6))


def bytes_only(tokens, heads, d, itemsize, gb_per_s, tflops):
    return 4 * tokens * heads * d * itemsize / (gb_per_s * 1e3)


def flops_only(tokens, heads, d, itemsize, gb_per_s, tflops):
    return 2 * tokens**2 * d * heads / (tflops * 1e6)


def scores_stored(tokens, heads, d, itemsize, gb_per_s, tflops):
    nbytes = (4 * tokens * heads * d + 2 * heads * tokens**2) * itemsize
    return max(nbytes / (gb_per_s * 1e3), 2 * tokens**2 * d * heads / (tflops * 1e6))


MISTAKES = {
    bytes_only: "You count the bytes alone. A long prompt waits for arithmetic: tokens squared.",
    flops_only: "You count the arithmetic alone. A short prompt waits for its bytes.",
    added: "You add the two times. Reading and computing go on side by side: the slower one decides.",
    unmasked: "You count every token with every other. The causal mask leaves half of the products.",
    scores_stored: "You also move the scores, tokens by tokens. FlashAttention never writes them to memory: that is "
                   "its point.",
}


def cases(draw, n):
    for tokens in (draw.integer(16, 60), draw.integer(2000, 9000)):
        yield {"tokens": tokens, "heads": draw.choice([6, 12, 25]), "d": draw.choice([64, 128]), "itemsize": 2,
               "gb_per_s": draw.number(2000, 5000), "tflops": draw.number(300, 800)}
