"""A message of b bytes takes about alpha + b / beta: a fixed price, and a rate.

Write `alpha_beta(sizes, microseconds)`: the pair (alpha in microseconds, beta in GB/s). `sizes` are in bytes,
ascending, from about a kilobyte to about a gigabyte. Each time has an error of up to 2 %. Yours may be off by 10 %.
"""
HINTS = ("What does the smallest message tell you? What does the largest?",
         "For the smallest, b / beta is next to nothing: its time is alpha. For the largest, alpha is next to "
         "nothing.",
         "Bytes a microsecond are MB/s. Divide by 1,000.")
RIGHT = "Half of beta is reached at alpha times beta bytes: below that size a link's bandwidth says little."
TOLERANCE = 0.1


def start(sizes, microseconds):
    # two lists of the same length  ->  (alpha in us, beta in GB/s)
    ...


def solution(sizes, microseconds):
    alpha = microseconds[0]                                   # a kilobyte costs next to nothing
    beta = sizes[-1] / (microseconds[-1] - alpha) / 1e3       # bytes a us -> GB/s
    return alpha, beta


def line(sizes, microseconds):
    n, x, y = len(sizes), sum(sizes), sum(microseconds)
    xx, xy = sum(s * s for s in sizes), sum(s * t for s, t in zip(sizes, microseconds))
    slope = (n * xy - x * y) / (n * xx - x * x)
    return (y - slope * x) / n, 1 / slope / 1e3


def megabytes(sizes, microseconds):
    return microseconds[0], sizes[-1] / microseconds[-1]


def seconds_a_byte(sizes, microseconds):
    return microseconds[0], microseconds[-1] / sizes[-1]


def from_the_smallest(sizes, microseconds):
    return microseconds[0], sizes[0] / microseconds[0] / 1e3


MISTAKES = {
    line: "Your beta is right, alpha is not. A plain line through the points cares about microseconds, and the "
          "largest message has most of them: alpha drowns in its error. Let the small messages speak for alpha.",
    megabytes: "Alpha is right. Beta is in bytes a microsecond, which are MB/s: 1,000 times too large for GB/s.",
    seconds_a_byte: "Alpha is right. Beta is upside down: you give microseconds a byte.",
    from_the_smallest: "You take beta from the smallest message. Nearly all of its time is alpha: take the largest.",
}


def cases(draw, n):
    for _ in range(3):
        alpha, beta = draw.number(2, 60), draw.number(10, 400)
        sizes = [1024 * 8**k for k in range(7)] + [1 << 30]
        noise = [draw.number(0.98, 1.02) for _ in sizes]
        yield {"sizes": sizes, "microseconds": [(alpha + s / beta / 1e3) * e for s, e in zip(sizes, noise)]}
