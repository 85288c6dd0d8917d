"""GPT-2's family and the settings of a run, as frozen values.

Field names are the checkpoint's own (`config.json` of the Hugging Face repositories).
Nothing here imports torch, so that pages without a kernel can read it.
"""
from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from .errors import UserError

PLANS = ("shipped", "as-drawn")
DTYPES = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class GPT2Config:
    """The shape of one GPT-2. Defaults are GPT-2 small (124M), with its 50,257 tokens.

    Source: Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", table 2.
    """

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    n_positions: int = 1024
    vocab_size: int = 50257
    n_inner: int | None = None  # width of the MLP; None means 4 * n_embd
    layer_norm_epsilon: float = 1e-5
    eos_token_id: int | None = 50256

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd={self.n_embd} is no multiple of n_head={self.n_head}")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def inner(self) -> int:
        return self.n_inner or 4 * self.n_embd

    @classmethod
    def from_json(cls, path: Path) -> GPT2Config:
        """Read a Hugging Face `config.json`; refuse what is not a GPT-2 rather than compute something else."""
        try:
            raw = json.loads(Path(path).read_text())
        except OSError as e:
            raise UserError(f"cannot read {path}: {e.strerror}") from e
        except ValueError as e:
            raise UserError(f"{path} is not JSON: {e}") from e
        expected = {"model_type": "gpt2", "activation_function": "gelu_new", "scale_attn_weights": True,
                    "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False, "tie_word_embeddings": True}
        for key, value in expected.items():
            if raw.get(key, value) != value:
                raise UserError(f"{path}: {key}={raw[key]!r}; this package runs GPT-2, where it is {value!r}")
        missing = {"n_layer", "n_head", "n_embd", "vocab_size"} - raw.keys()
        if missing:
            raise UserError(f"{path} lacks {', '.join(sorted(missing))}")
        raw.setdefault("n_positions", raw.get("n_ctx", 1024))
        return cls(**{k: v for k, v in raw.items() if k in cls.__dataclass_fields__})


FAMILY = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=1600),  # 25 heads: padded to 26 at TP=2
    "gpt2-test": GPT2Config(n_layer=2, n_head=4, n_embd=64, n_positions=128, vocab_size=257, eos_token_id=256),
}


@dataclass(frozen=True)
class CacheConfig:
    """The paged KV cache. `cache_dtype` "auto" is the model's dtype, "fp8_e4m3" halves it where the kernel takes it."""

    block_size: int = 16  # tokens a page
    cache_dtype: str = "auto"
    num_blocks: int | None = None  # pages; None: enough for the batch at hand


def padded(n: int, multiple: int) -> int:
    """The least multiple of `multiple` that holds n."""
    return -(-n // multiple) * multiple
