"""One GPU takes `layer_us` for a block. Two GPUs take half of it each, and `call_us` for every collective of the
forward: those of the blocks, and the two outside (the embedding's sum, the logits' gather).

Write `break_even(layer_us, call_us)`: the smallest number of layers from which two GPUs are faster, or None if they
never are. What else a forward does is left out.
"""
HINTS = ("One GPU: L * layer_us. Two: L * (layer_us / 2 + how many calls * call_us) + 2 * call_us.",
         "What does one block gain? If that is not more than 0, more blocks don't help.",
         "Strictly faster: L must be larger than 2 * call_us / gain.")
RIGHT = "A block gains half of its work and pays two sums. If a sum costs a quarter of a block, no depth helps."


def start(layer_us, call_us):
    # ->  layers, or None
    ...


def solution(layer_us, call_us):
    gain = layer_us / 2 - 2 * call_us            # of one block
    if gain <= 0:
        return None
    return int(2 * call_us // gain) + 1


def one_sum(layer_us, call_us):
    gain = layer_us / 2 - call_us
    return int(2 * call_us // gain) + 1 if gain > 0 else None


def blocks_alone(layer_us, call_us):
    return 1 if layer_us / 2 > 2 * call_us else None


def hopeful(layer_us, call_us):
    return int(2 * call_us // (layer_us / 2 - 2 * call_us)) + 1


def endless(layer_us, call_us):
    return solution(layer_us, call_us) or float("inf")


MISTAKES = {
    one_sum: "You count one sum a block. There are two: attention's and the MLP's.",
    blocks_alone: "You leave out the two collectives outside the blocks: a few blocks must earn them first.",
    hopeful: "Where a block gains nothing, no number of layers helps: return None there.",
    endless: "Where a block gains nothing the task asks for None.",
}


def cases(draw, n):
    for times in (4.3, 4.9, 8.5, 3.1):
        call_us = draw.number(1, 20)
        yield {"layer_us": times * call_us * draw.number(1.0, 1.03), "call_us": call_us}
