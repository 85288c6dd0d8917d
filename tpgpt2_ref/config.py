"""GPT-2's family and the settings of a run, as frozen values.

Field names are the checkpoint's own (`config.json` of the Hugging Face repositories).
Nothing here imports torch, so that pages without a kernel can read it.
"""
from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import UserError
from .files import field, read_json, shown

PLANS = ("shipped", "as-drawn")
DTYPES = ("float32", "float16", "bfloat16")
GELU = ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "gelu_pytorch_tanh")  # one function, five names
# What another value of would be another model than this package runs; None: where it isn't said.
FIXED = {"model_type": ("gpt2",), "activation_function": GELU, "scale_attn_weights": (True,),
         "scale_attn_by_inverse_layer_idx": (False,), "add_cross_attention": (False,), "quantization_config": (None,),
         "transformers_weights": (None,)}
OTHER_NAMES = {"hidden_size": "n_embd", "num_attention_heads": "n_head", "num_hidden_layers": "n_layer",
               "max_position_embeddings": "n_positions"}  # that transformers takes for the same fields


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
    eos_token_id: int | tuple[int, ...] | None = 50256
    tie_word_embeddings: bool = True  # logits from the embedding's own rows

    def __post_init__(self):
        for name in ("n_layer", "n_head", "n_embd", "n_positions", "vocab_size", "inner"):
            if getattr(self, name) < 1:
                raise UserError(f"{name}={getattr(self, name)}: a GPT-2 needs at least 1")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd={self.n_embd} is no multiple of n_head={self.n_head}")

    @property
    def head_size(self) -> int:
        return self.n_embd // self.n_head

    @property
    def inner(self) -> int:
        return 4 * self.n_embd if self.n_inner is None else self.n_inner

    @property
    def end_tokens(self) -> tuple[int, ...]:
        """The ids at which a sequence ends: none, one or several."""
        ends = self.eos_token_id
        return () if ends is None else ends if isinstance(ends, tuple) else (ends,)

    @classmethod
    def from_json(cls, path: Path) -> GPT2Config:
        """Read a Hugging Face `config.json`; refuse what is not a GPT-2 rather than compute something else.

        As in transformers, a `generation_config.json` beside it decides alone where a sequence ends.
        """
        path = Path(path)
        raw = read_json(path)
        for key, values in FIXED.items():
            if (value := raw.get(key, values[0])) not in values:
                raise UserError(f"{path}: {key}={shown(value)}; this package runs GPT-2, where it is {values[0]!r}")
        for other, name in OTHER_NAMES.items():
            if other in raw and raw[other] != (value := raw.get(name)):
                raise UserError(f"{path}: {other}={shown(raw[other])}, but {name}={shown(value)}: write {name} alone")
        missing = {"n_layer", "n_head", "n_embd", "vocab_size"} - raw.keys()
        if missing:
            raise UserError(f"{path} lacks {', '.join(sorted(missing))}")
        raw.setdefault("n_positions", raw.get("n_ctx", 1024))
        kinds = {"n_inner": (int, type(None)), "layer_norm_epsilon": float, "tie_word_embeddings": bool}
        values = {name: field(raw, name, kinds.get(name, int), str(path), default=about.default)
                  for name, about in cls.__dataclass_fields__.items() if name != "eos_token_id"}
        if values["layer_norm_epsilon"] < 0:
            raise UserError(f"{path}: layer_norm_epsilon={values['layer_norm_epsilon']} is negative")
        generation = path.with_name("generation_config.json")
        ends = _end_tokens(read_json(generation), None, generation) if generation.exists() else \
            _end_tokens(raw, cls.eos_token_id, path)
        try:
            return cls(**values, eos_token_id=ends)
        except UserError as e:
            raise UserError(f"{path}: {e}") from e


def _end_tokens(raw: dict, default: int | None, path: Path) -> int | tuple[int, ...] | None:
    ends = field(raw, "eos_token_id", (int, list, type(None)), str(path), default=default)
    if not isinstance(ends, list):
        return ends
    return tuple(field(ends, i, int, path, "eos_token_id, number ") for i in range(len(ends)))


FAMILY = {
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_layer=24, n_head=16, n_embd=1024),
    "gpt2-large": GPT2Config(n_layer=36, n_head=20, n_embd=1280),
    "gpt2-xl": GPT2Config(n_layer=48, n_head=25, n_embd=1600),  # 25 heads: padded to 26 at TP=2
    "gpt2-test": GPT2Config(n_layer=2, n_head=4, n_embd=64, n_positions=128, vocab_size=257, eos_token_id=256),
}


@dataclass(frozen=True)
class CacheConfig:
    """The paged KV cache, as an attention kernel reads it: a model is loaded for one, and its engine fills it.

    cache_dtype  "auto" is the model's dtype, "fp8_e4m3" halves it where the kernel takes it
    """

    block_size: int = 16  # tokens a page
    cache_dtype: str = "auto"


def padded(n: int, multiple: int) -> int:
    """The least multiple of `multiple` that holds n."""
    return -(-n // multiple) * multiple
