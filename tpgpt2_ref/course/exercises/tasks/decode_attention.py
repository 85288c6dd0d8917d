"""Each of B sequences has one new token. Its key and value are in the cache already. Write `decode_attention(q, cache,
block_table, seq_lens)`: softmax(q k^T / sqrt(d)) v, for each sequence and head, as (B, H, d).

`q` is (B, H, d). `cache` is (2, pages, 16, H, d): keys, then values. Sequence b's tokens lie in the pages
`block_table[b]`, in that order, 16 to a page; it has `seq_lens[b]` tokens, and what lies behind them in its last
page is not its own.
"""
import torch

HINTS = ("`cache[0, pages].flatten(0, 1)[:n]` are a sequence's n keys, (n, H, d).",
         "`torch.einsum(\"hd,nhd->hn\", q[b], k)` are its scores.")
RIGHT = "A loop over sequences is right and slow: a kernel gives each sequence and head a program of its own."


def start(q, cache, block_table, seq_lens):
    # q (B, H, d), cache (2, pages, 16, H, d), block_table (B, p), seq_lens (B,)
    # ->  (B, H, d)
    ...


def solution(q, cache, block_table, seq_lens):
    out = torch.empty_like(q)
    for b, n in enumerate(seq_lens.tolist()):
        pages = block_table[b, : -(-n // 16)].long()
        k, v = (cache[i, pages].flatten(0, 1)[:n] for i in (0, 1))          # (n, H, d)
        scores = torch.einsum("hd,nhd->hn", q[b], k) / q.shape[-1] ** 0.5
        out[b] = torch.einsum("hn,nhd->hd", scores.softmax(-1), v)
    return out


def attend(q, cache, block_table, seq_lens, scale=None, whole_pages=False, in_order=False, over_heads=False):
    out = torch.empty_like(q)
    for b, n in enumerate(seq_lens.tolist()):
        count = -(-n // 16)
        pages = torch.arange(count, device=q.device) if in_order else block_table[b, :count].long()
        places = 16 * count if whole_pages else n
        k, v = (cache[i, pages].flatten(0, 1)[:places] for i in (0, 1))  # (places, H, d)
        scores = torch.einsum("hd,nhd->hn", q[b], k) * (q.shape[-1] ** -0.5 if scale is None else scale)
        out[b] = torch.einsum("hn,nhd->hd", scores.softmax(0 if over_heads else -1), v)
    return out


def unscaled(q, cache, block_table, seq_lens):
    return attend(q, cache, block_table, seq_lens, scale=1.0)


def scaled_by_d(q, cache, block_table, seq_lens):
    return attend(q, cache, block_table, seq_lens, scale=1 / q.shape[-1])


def whole_pages(q, cache, block_table, seq_lens):
    return attend(q, cache, block_table, seq_lens, whole_pages=True)


def pages_in_order(q, cache, block_table, seq_lens):
    return attend(q, cache, block_table, seq_lens, in_order=True)


def over_heads(q, cache, block_table, seq_lens):
    return attend(q, cache, block_table, seq_lens, over_heads=True)


MISTAKES = {
    unscaled: "The scores are not divided by the square root of d.",
    scaled_by_d: "The scores are divided by d. It is its square root.",
    whole_pages: "You attend to all 16 places of the last page. Behind the sequence's end lies what is not its own: "
                 "cut at `seq_lens[b]`.",
    pages_in_order: "You read pages 0, 1, 2, ... A sequence's pages are `block_table[b]`, anywhere in the cache.",
    over_heads: "The softmax goes over heads. It must go over tokens, the last dimension of the scores.",
}


def cases(draw, n):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for heads, d in ((2, 8), (3, 16)):
        lens = [draw.integer(1, 40), 16, draw.integer(17, 31)]
        pages = list(range(1, 13))
        draw.random.shuffle(pages)
        table = [pages[3 * b: 3 * b + 3] for b in range(len(lens))]
        yield {"q": 2 * draw.tensor(len(lens), heads, d).to(device),
               "cache": draw.tensor(2, 13, 16, heads, d).to(device),
               "block_table": torch.tensor(table, dtype=torch.int32, device=device),
               "seq_lens": torch.tensor(lens, dtype=torch.int32, device=device)}


def speed(answer) -> str:
    """On this GPU: the answer's time beside reading the keys and values once, at the rate of a large copy."""
    from .one_shot import microseconds

    batch, heads, d, length = 8, 12, 64, 1024
    like = {"dtype": torch.float16, "device": "cuda"}
    cache = torch.randn(2, batch * length // 16, 16, heads, d, **like)
    table = torch.arange(batch * length // 16, dtype=torch.int32, device="cuda").view(batch, -1)
    lens = torch.full((batch,), length, dtype=torch.int32, device="cuda")
    q, large = torch.randn(batch, heads, d, **like), torch.empty(1 << 29, dtype=torch.uint8, device="cuda")
    us = microseconds(lambda: answer(q, cache, table, lens), 20)
    rate = 2 * large.nbytes / microseconds(large.clone, 20)  # read and written
    return (f"On this GPU: {us:.1f} us for {batch} sequences of {length:,} tokens, fp16; its keys and values alone "
            f"take {cache.nbytes / rate:.1f} us at the speed of a large copy.")
