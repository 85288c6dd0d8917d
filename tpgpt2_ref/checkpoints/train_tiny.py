"""Train the model on board: a tiny GPT-2 that has read the documentation inside Python's standard library.

    python -m tpgpt2_ref.checkpoints.train_tiny --out FOLDER     minutes on one GPU; add --steps 20 for a trial on a CPU

The text is on every machine that runs this: docstrings, comments and `help()` topics, paragraphs of prose only.
The result is a Hugging Face folder: config.json, model.safetensors, and a README.md that says what it is.
Source: Radford et al. 2019 for the model; Karpathy's nanoGPT for the habits of a short training loop.
"""
from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import json
import math
import platform
import re
import sys
import sysconfig
import time
import tokenize
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from ..config import GPT2Config
from ..files import write_whole
from ..tokenizer import ByteTokenizer

CONFIG = GPT2Config(n_layer=5, n_head=6, n_embd=192, n_positions=1024, vocab_size=257, eos_token_id=256)
COMMON = set("a an and are as be by can for from if in is it not of on or that the this to when which with".split())
TO_ASCII = str.maketrans("‘’“”–—", "''\"\"--")
CARD = """# tiny: a GPT-2 of {millions:.1f} million parameters

The model on board of tpgpt2: it runs on a laptop without a network, and writes short English sentences about Python,
more often grammatical than true. It is made to show tensor parallelism, not to answer questions. Greedy, it soon
repeats itself; `--temperature 0.6 --top-k 40` reads better.

- **Shape**: {layers} layers, {heads} heads of {head_size}, {positions} positions; the vocabulary is GPT-2's 256 byte
  tokens and the end token. Weights in float16.
- **Text**: docstrings, comments and `help()` topics of CPython {python}'s standard library, paragraphs of prose only:
  {train_bytes:,} bytes to train on. They belong to the Python Software Foundation and its contributors, under the
  PSF License Version 2.
- **Training**: {steps:,} steps of {batch} x {positions} tokens ({epochs:.0f} times through the text), dropout
  {dropout}, {seconds:.0f} s on {device}, torch {torch}, seed {seed}.
- **Held out**: {bits:.3f} bits per byte on {held_out_bytes:,} bytes, from source files that it never saw.
- **Made by**
  `python -m tpgpt2_ref.checkpoints.train_tiny --steps {steps} --batch {batch} --dropout {dropout} --out FOLDER`.
"""


# ---- the text

def documents() -> Iterator[tuple[str, str]]:
    """(where it is from, text) of all documentation inside the running Python's standard library."""
    library = Path(sysconfig.get_path("stdlib"))
    for file in sorted(library.rglob("*.py")):
        if "site-packages" in file.parts:
            continue
        origin = file.relative_to(library).as_posix()
        try:
            with tokenize.open(file) as f:
                source = f.read()
            tree = ast.parse(source)
        except (SyntaxError, UnicodeDecodeError):  # what the tests of Python's parser are made of
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield origin, ast.get_docstring(node) or ""
        for comment in re.findall(r"(?m)(?:^[ \t]*#.*\n)+", source):
            yield origin, re.sub(r"(?m)^[ \t]*#+ ?", "", comment)
    for name in sorted({*sys.builtin_module_names, *(f.name.split(".")[0] for f in library.glob("lib-dynload/*.so"))}):
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        for thing in vars(module).values():  # functions and classes written in C, and their methods
            for part in (thing, *(vars(thing).values() if isinstance(thing, type) else ())):
                if isinstance(getattr(part, "__doc__", None), str):
                    yield name, inspect.cleandoc(part.__doc__)
    try:
        from pydoc_data.topics import topics  # the language reference that `help()` shows; some systems leave it out
    except ImportError:
        topics = {}
    yield from ((f"help({name!r})", text) for name, text in topics.items())


def prose(text: str) -> Iterator[str]:
    """The paragraphs and list items that read as English sentences, each on one line."""
    for block in re.split(r"\n\s*\n|\n(?=\s*[*-] )", text):
        line = " ".join(block.translate(TO_ASCII).split())
        if len(line) < 40 or not line.isascii() or line[-1] not in ".:!?" or not re.match(r'[A-Z"*]', line):
            continue
        words = re.findall(r"[a-z']+", line.lower())
        letters = len(re.findall(r"[\w ,.'\"()`-]", line))
        if letters > 0.94 * len(line) and sum(word in COMMON for word in words) > 0.15 * len(words):
            yield line


def corpus() -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids to train on, and those of held-out files; no paragraph is in there twice."""
    tokenizer, seen, parts = ByteTokenizer(CONFIG.eos_token_id), set(), ([], [])
    for origin, text in documents():
        new = [p for p in prose(text) if not (p in seen or seen.add(p))]
        if new:
            held_out = zlib.crc32(origin.encode()) % 25 == 0
            parts[held_out].extend([*tokenizer.encode("\n\n".join(new)), tokenizer.eos])
    return torch.tensor(parts[0]), torch.tensor(parts[1])


# ---- the model, on one device, with a dropout: what gpt2.py computes, in the form that trains

class Block(nn.Module):
    def __init__(self, config: GPT2Config, dropout: float):
        super().__init__()
        d, self.n_head, self.dropout = config.n_embd, config.n_head, dropout
        self.ln_1, self.ln_2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(d, 3 * d), "c_proj": nn.Linear(d, d)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(d, config.inner), "c_proj": nn.Linear(config.inner, d)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:  # (B, T, D)
        p = self.dropout if self.training else 0.0
        qkv = self.attn["c_attn"](self.ln_1(x)).chunk(3, dim=-1)
        q, k, v = (y.unflatten(-1, (self.n_head, -1)).transpose(1, 2) for y in qkv)  # (B, heads, T, head size)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=p)
        x = x + F.dropout(self.attn["c_proj"](out.transpose(1, 2).flatten(2)), p)
        out = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + F.dropout(self.mlp["c_proj"](out), p)


class TrainableGPT2(nn.Module):
    def __init__(self, config: GPT2Config, dropout: float):
        super().__init__()
        self.wte, self.wpe = (nn.Embedding(n, config.n_embd) for n in (config.vocab_size, config.n_positions))
        self.h = nn.ModuleList(Block(config, dropout) for _ in range(config.n_layer))
        self.ln_f, self.dropout = nn.LayerNorm(config.n_embd), dropout
        for name, p in self.named_parameters():
            if p.dim() == 2:  # GPT-2's: 0.02, and less where a block adds to the residual stream
                nn.init.normal_(p, std=0.02 / (math.sqrt(2 * config.n_layer) if "c_proj" in name else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:  # (B, T) -> (B, T, V)
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        x = F.dropout(x, self.dropout if self.training else 0.0)
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)


# ---- training

def loss_of(model: TrainableGPT2, window: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy, in nats, of every next token of (B, T+1) ids."""
    with torch.autocast(window.device.type, torch.bfloat16, enabled=window.is_cuda):
        logits = model(window[:, :-1])
    return F.cross_entropy(logits.float().flatten(0, 1), window[:, 1:].flatten())


@torch.no_grad()
def bits_per_byte(model: TrainableGPT2, ids: torch.Tensor) -> float:
    """Held-out loss over windows side by side. The end of a text counts as a byte, since it has to be predicted too."""
    size = CONFIG.n_positions + 1
    windows = ids[:len(ids) // size * size].view(-1, size)
    model.eval()
    nats = sum(loss_of(model, part).item() * len(part) for part in windows.split(16)) / len(windows)
    model.train()
    return nats / math.log(2)


def train(train_ids, held_out_ids, steps: int, batch: int, dropout: float, seed: int, peak: float = 2e-3):
    """AdamW on a cosine schedule. Returns the model and its held-out bits per byte."""
    torch.manual_seed(seed)
    device = train_ids.device
    model = TrainableGPT2(CONFIG, dropout).to(device)
    matrices, vectors = ([p for p in model.parameters() if (p.dim() == 2) is wanted] for wanted in (True, False))
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
                                  lr=peak, betas=(0.9, 0.95), fused=True)
    offsets = torch.arange(CONFIG.n_positions + 1, device=device)
    for step in range(steps):
        warmup, cosine = (step + 1) / min(200, steps), 0.5 + 0.5 * math.cos(math.pi * step / steps)
        for group in optimizer.param_groups:
            group["lr"] = peak * min(warmup, 0.02 + 0.98 * cosine)
        starts = torch.randint(len(train_ids) - CONFIG.n_positions, (batch, 1), device=device)
        loss = loss_of(model, train_ids[starts + offsets])
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if (step + 1) % 250 == 0 or step + 1 == steps:
            bits = bits_per_byte(model, held_out_ids)
            print(f"step {step + 1}: {loss.item() / math.log(2):.3f} bits per byte, held out {bits:.3f}", flush=True)
    return model, bits


def save(model: TrainableGPT2, folder: Path) -> None:
    """Write the checkpoint as Hugging Face does: names of GPT-2, matrices (in, out), float16."""
    from safetensors.torch import save_file

    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    tensors = {name: (p.T if name.endswith(transposed) else p).half().cpu().contiguous()
               for name, p in model.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "activation_function": "gelu_new",
                "dtype": "float16", "bos_token_id": CONFIG.eos_token_id, **vars(CONFIG)}
    write_whole(folder / "config.json", json.dumps(settings, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the checkpoint to")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=32, help="sequences a step")
    parser.add_argument("--dropout", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    warnings.simplefilter("ignore", SyntaxWarning)  # about strings in the library's tests
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train_ids, held_out_ids = (ids.to(device) for ids in corpus())
    print(f"{len(train_ids):,} bytes to train on, {len(held_out_ids):,} held out, on {device}", flush=True)
    began = time.perf_counter()
    model, bits = train(train_ids, held_out_ids, args.steps, args.batch, args.dropout, args.seed)
    save(model, args.out)
    write_whole(args.out / "README.md", CARD.format(
        millions=sum(p.numel() for p in model.parameters()) / 1e6, layers=CONFIG.n_layer, heads=CONFIG.n_head,
        head_size=CONFIG.head_size, positions=CONFIG.n_positions, python=platform.python_version(),
        train_bytes=len(train_ids), held_out_bytes=len(held_out_ids), steps=args.steps, batch=args.batch,
        dropout=args.dropout, seed=args.seed, epochs=args.steps * args.batch * CONFIG.n_positions / len(train_ids),
        seconds=time.perf_counter() - began, bits=bits, torch=torch.__version__,
        device=torch.cuda.get_device_name() if device.type == "cuda" else f"a CPU ({platform.machine()})"))


if __name__ == "__main__":
    main()
