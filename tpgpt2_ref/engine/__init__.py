"""From a model to text: prefill, decode over the paged cache, sampling."""
from ..request import SamplingParams
from .engine import Engine, prompt_logits

__all__ = ["Engine", "SamplingParams", "prompt_logits"]
