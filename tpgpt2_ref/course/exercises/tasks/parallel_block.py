"""GPT-J computes attention and MLP of a block side by side, from the same input:

    y = x + attention(x) + mlp(x)

On n ranks `attention(x)` and `mlp(x)` give this rank's part of each result: all ranks' parts must be summed. `x` is
whole, the same on every rank. Write `parallel_block(x, attention, mlp, all_reduce)` with as few messages as can be.
"""
HINTS = ("A sum of sums can be taken in any order.",
         "What must not go through `all_reduce`? It is the same on every rank already.")
RIGHT = ("One sum a block instead of two: GPT-J and PaLM halve their collectives so. GPT-2's MLP needs attention's "
         "result, so GPT-2 can't.")


def start(x, attention, mlp, all_reduce):
    # x (T, D); attention(x) and mlp(x): this rank's parts, (T, D)  ->  (T, D)
    ...


def solution(x, attention, mlp, all_reduce):
    return x + all_reduce(attention(x) + mlp(x))


def two_sums(x, attention, mlp, all_reduce):
    return x + all_reduce(attention(x)) + all_reduce(mlp(x))


def residual_in_the_sum(x, attention, mlp, all_reduce):
    return all_reduce(x + attention(x) + mlp(x))


def without_sum(x, attention, mlp, all_reduce):
    return x + attention(x) + mlp(x)


def in_a_row(x, attention, mlp, all_reduce):
    x = x + all_reduce(attention(x))
    return x + all_reduce(mlp(x))


MISTAKES = {
    two_sums: "The numbers are right, but you sum twice. Add the two parts first: one sum is enough.",
    residual_in_the_sum: "The residual x is whole on every rank. Inside the sum it counts {n} times: add it "
                         "afterwards.",
    without_sum: "Each rank has added its own parts only: nobody sums.",
    in_a_row: "This is GPT-2's block: the MLP reads what attention has made. Here both read the same x.",
}


def cases(draw, n):
    for _ in range(2):
        width = draw.integer(2, 5)
        yield {"x": draw.tensor(4, width), "attention": draw.tensor(n, width, width),
               "mlp": draw.tensor(n, width, width)}


def cost(log) -> int:
    return len(log)


def play(answer, case, tools):
    x, attention, mlp = case["x"], case["attention"][tools.rank], case["mlp"][tools.rank]
    return answer(x, lambda x: x @ attention, lambda x: (x @ mlp).tanh(), tools.all_reduce)
