"""tpgpt2: tensor-parallel GPT-2 whose diagrams run. Start with `gpt2.py` (Diagram 2)."""

__version__ = "0.1.0"
