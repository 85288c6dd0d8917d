"""A context is too long for one GPU, so its tokens are cut: each rank has the keys and values of its own, `k` and `v`
(t, H, d), and the whole query `q` (H, d).

Write `kv_shards(q, k, v, all_gather)`: softmax(q k^T / sqrt(d)) v over all tokens of all ranks, (H, d), the same on
every rank. `all_gather(y)` returns (n, ...), every rank's y. Keys and values must not travel.
"""
import torch
import torch.nn.functional as F

HINTS = ("A rank can give three small things: its largest score, its sum of exponentials, its weighted sum of values.",
         "Exponentials taken against different maxima can't be added. Bring all to the largest maximum first: "
         "multiply by exp(own maximum - largest).",
         "At the end divide the sum of the weighted values by the sum of the exponentials.")
RIGHT = ("FlashAttention does the same from one tile to the next, and a split-KV decode kernel from one block to "
         "another.")


def start(q, k, v, all_gather):
    # q (H, d), k and v (t, H, d)  ->  (H, d)
    ...


def solution(q, k, v, all_gather):
    scores = torch.einsum("hd,thd->ht", q, k) / q.shape[-1] ** 0.5
    top = scores.amax(-1)                                        # (H,) this rank's largest
    p = (scores - top[:, None]).exp()
    tops = all_gather(top)                                       # (n, H)
    share = (tops - tops.amax(0)).exp()                          # what a rank's exponentials are worth, (n, H)
    total = (share * all_gather(p.sum(-1))).sum(0)               # (H,)
    values = all_gather(torch.einsum("ht,thd->hd", p, v))        # (n, H, d)
    return (share[..., None] * values).sum(0) / total[:, None]


def mean(q, k, v, all_gather):
    own = F.scaled_dot_product_attention(q[:, None], k.transpose(0, 1), v.transpose(0, 1))[:, 0]  # (H, d)
    return all_gather(own).mean(0)


def added(q, k, v, all_gather):
    own = F.scaled_dot_product_attention(q[:, None], k.transpose(0, 1), v.transpose(0, 1))[:, 0]  # (H, d)
    return all_gather(own).sum(0)


def alone(q, k, v, all_gather):
    return F.scaled_dot_product_attention(q[:, None], k.transpose(0, 1), v.transpose(0, 1))[:, 0]  # (H, d)


def maxima_forgotten(q, k, v, all_gather):
    scores = torch.einsum("hd,thd->ht", q, k) / q.shape[-1] ** 0.5
    p = (scores - scores.amax(-1, keepdim=True)).exp()
    total = all_gather(p.sum(-1)).sum(0)
    return all_gather(torch.einsum("ht,thd->hd", p, v)).sum(0) / total[:, None]


def no_maximum(q, k, v, all_gather):
    p = (torch.einsum("hd,thd->ht", q, k) / q.shape[-1] ** 0.5).exp()
    total = all_gather(p.sum(-1)).sum(0)
    return all_gather(torch.einsum("ht,thd->hd", p, v)).sum(0) / total[:, None]


def gathers_all(q, k, v, all_gather):
    k, v = all_gather(k).flatten(0, 1), all_gather(v).flatten(0, 1)  # (n * t, H, d)
    return F.scaled_dot_product_attention(q[:, None], k.transpose(0, 1), v.transpose(0, 1))[:, 0]  # (H, d)


MISTAKES = {
    mean: "You take the mean of the ranks' outputs. A rank whose tokens score higher must weigh more: by its sum of "
          "exponentials.",
    added: "You add the ranks' outputs. Each is a mean already: weigh them by their sums of exponentials.",
    alone: "Each rank attends to its own tokens only.",
    maxima_forgotten: "Each rank takes its exponentials against its own largest score, and you add them as they are. "
                      "Bring them to one maximum first.",
    no_maximum: "The exponential of a large score overflows. Subtract the largest score first.",
    gathers_all: "The numbers are right, but every key and value travels. Send what a rank has made of its tokens.",
}


def cases(draw, n):
    for scale in (1.0, 60.0):  # the second overflows without a maximum
        heads, d, tokens = 2, 8, draw.integer(40, 60)
        yield {"q": scale * draw.tensor(heads, d), "k": draw.tensor(n, tokens, heads, d),
               "v": draw.tensor(n, tokens, heads, d)}


def cost(log) -> int:
    return sum(nbytes for _, nbytes in log) // 2048


def play(answer, case, tools):
    return answer(case["q"], case["k"][tools.rank], case["v"][tools.rank], tools.all_gather)
