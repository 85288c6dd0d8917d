"""What a user may ask of the engine, and what is refused before anything runs."""
from __future__ import annotations

from dataclasses import dataclass

from .errors import UserError

COLDEST, HOTTEST = 1e-30, 1e30  # temperatures; logits divided by them still fit into float32
SEEDS = 1 << 64


@dataclass(frozen=True)
class SamplingParams:
    """temperature 0 is greedy; top_k 0 and top_p 1 keep every token; all 64 bits of the seed count."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self):
        if not 0 <= self.temperature <= HOTTEST:  # nor nan
            raise UserError(f"--temperature must be 0 (greedy) or more, up to {HOTTEST:g}, not {self.temperature}")
        if 0 < self.temperature < COLDEST:
            raise UserError(f"--temperature {self.temperature} is too small to divide by: 0 is greedy, and "
                            f"{COLDEST:g} the least above it")
        if self.top_k < 0:
            raise UserError(f"--top-k must be 0 (all tokens) or more, not {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"--top-p must lie in (0, 1], not {self.top_p}")
        if not 0 <= self.seed < SEEDS:
            raise UserError(f"--seed must be a whole number of at most 64 bits (0 to {SEEDS - 1}), not {self.seed}")


def check_prompts(config, prompts: list[list[int]], max_new_tokens: int = 1) -> None:
    """Refuse empty prompts, ids outside the vocabulary, and prompts longer than the model's positions."""
    if max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, not {max_new_tokens}")
    if not prompts:
        raise UserError("no prompt: give --prompt TEXT or --prompt-ids 1,2,3")
    for i, prompt in enumerate(prompts):
        if not prompt:
            raise UserError(f"prompt {i} is empty: it needs at least one token")
        if len(prompt) > config.n_positions:
            raise UserError(f"prompt {i} has {len(prompt)} tokens, the model has {config.n_positions} positions: "
                            "shorten it")
        outside = next((t for t in prompt if not 0 <= t < config.vocab_size), None)
        if outside is not None:
            raise UserError(f"prompt {i}: id {outside} lies outside the vocabulary of {config.vocab_size} "
                            f"(0 to {config.vocab_size - 1})")
