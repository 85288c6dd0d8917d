"""Hugging Face transformers on the same shapes: the peer beside which decode and prefill are measured."""
from __future__ import annotations

import time
from contextlib import contextmanager
from itertools import pairwise

import torch


def peer_model(config, dtype: str, world):
    """GPT-2 of the same shape with random weights; None if transformers isn't installed, or several ranks run."""
    try:
        from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError:
        return None
    if world.size > 1:
        return None
    peer = GPT2Config(n_layer=config.n_layer, n_head=config.n_head, n_embd=config.n_embd,
                      n_positions=config.n_positions, vocab_size=config.vocab_size, n_inner=config.n_inner,
                      bos_token_id=None, eos_token_id=None)
    with world.device:
        return GPT2LMHeadModel(peer).to(getattr(torch, dtype)).eval()


def decode_times(peer, prompts: list[list[int]], new_tokens: int) -> list[float]:
    """Microseconds of each decode step of one `generate`, after one that warmed up."""
    from transformers import StoppingCriteria

    ids = torch.tensor(prompts, device=peer.device)  # (B, T)

    class Clock(StoppingCriteria):
        """Called after every token; stops nothing."""

        def __init__(self):
            self.times = []

        def __call__(self, input_ids, scores, **kwargs):
            if input_ids.is_cuda:
                torch.cuda.synchronize()
            self.times.append(time.perf_counter())
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    with without_cudnn_attention():
        for tokens in (4, new_tokens):
            clock = Clock()
            peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, do_sample=False,
                          stopping_criteria=[clock], pad_token_id=0)
    return [(b - a) * 1e6 for a, b in pairwise(clock.times)]


def prefill_step(peer, prompts: list[list[int]]):
    """step() -> (B,) the best token after each prompt, with the cache filled."""
    ids = torch.tensor(prompts, device=peer.device)  # (B, T)

    @torch.inference_mode()
    def step():
        return peer(ids, use_cache=True, logits_to_keep=1).logits[:, -1].argmax(-1)  # (B, 1, V) -> (B,)

    return step


@contextmanager
def without_cudnn_attention():
    """PyTorch prefers cuDNN's attention on Hopper, which builds a graph for each new length (its cudnn/MHA.cpp).
    That is most of a step's time whenever a text reaches a length for the first time (`transformers_cudnn.json`)."""
    before = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
