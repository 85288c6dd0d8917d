"""From a checkpoint to this rank's shards.

    a folder      config.json + *.safetensors, as Hugging Face writes them
    a hub name    "gpt2", fetched with huggingface_hub (or found in its cache)
    "tiny"        the model on board (see checkpoints/tiny)
    "random:gpt2" seeded random weights in the real shapes, the same at every TP size

Every name and shape is checked against the configuration before the first tensor is read, and each layer
reads just its own slice of each tensor.
"""
from __future__ import annotations

import json
import re
import zlib
from pathlib import Path

from .config import DTYPES, FAMILY, CacheConfig, GPT2Config
from .errors import UserError

ON_BOARD = Path(__file__).parent / "checkpoints"
CHUNK = 1 << 18  # random elements made at once, so that they stay in a CPU's cache; on a GPU four times as many
IGNORED = re.compile(r"h\.\d+\.attn\.(masked_)?bias|lm_head\.weight")  # causal masks, and the tied head's copy


def find_checkpoint(model: str) -> tuple[GPT2Config, Path | None]:
    """(configuration, folder) of a model name; the folder is None for random weights.

    Raises UserError for an unknown name, and for a folder whose tensors are not the configuration's.
    """
    if model.startswith("random:"):
        name = model.removeprefix("random:")
        if name not in FAMILY:
            raise UserError(f"unknown configuration {name!r}; known: {', '.join('random:' + n for n in FAMILY)}")
        return FAMILY[name], None
    folder = ON_BOARD / model if (ON_BOARD / model).is_dir() else Path(model)
    if not folder.is_dir():
        folder = _from_hub(model)
    config = GPT2Config.from_json(folder / "config.json")
    check_tensors(config, folder)
    return config, folder


def _from_hub(model: str) -> Path:
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", model):
        raise UserError(f"{model} is no folder with config.json and safetensors")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = ["config.json", "*.safetensors", "*.safetensors.index.json",
                "tokenizer.json", "vocab.json", "merges.txt"]
    try:
        return Path(snapshot_download(model, allow_patterns=patterns, etag_timeout=5))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as e:
        raise UserError(f"{model!r} is neither a local folder nor to be had from the hub "
                        f"({type(e).__name__}). Without a network use 'tiny', 'random:gpt2' or a local folder") from e


def tensor_shapes(config: GPT2Config) -> dict[str, tuple[int, ...]]:
    """{name: shape} of a GPT-2 checkpoint. Matrices are (in, out): OpenAI's Conv1D."""
    d, inner = config.n_embd, config.inner
    shapes = {"wte.weight": (config.vocab_size, d), "wpe.weight": (config.n_positions, d)}
    for i in range(config.n_layer):
        for name, shape in {"ln_1": (d,), "attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d),
                            "ln_2": (d,), "mlp.c_fc": (d, inner), "mlp.c_proj": (inner, d)}.items():
            shapes[f"h.{i}.{name}.weight"] = shape
            shapes[f"h.{i}.{name}.bias"] = shape[-1:]
    return {**shapes, "ln_f.weight": (d,), "ln_f.bias": (d,)}


def tensor_files(folder: Path) -> dict[str, Path]:
    """{tensor name: file} of a checkpoint, one file or several with an index."""
    index = folder / "model.safetensors.index.json"
    files = {folder / f for f in json.loads(index.read_text())["weight_map"].values()} if index.exists() else \
        set(folder.glob("model*.safetensors"))
    if not files:
        hint = " (pytorch_model.bin is not read: save it again with safe_serialization=True)" \
            if (folder / "pytorch_model.bin").exists() else ""
        raise UserError(f"{folder} holds no weights: expected model.safetensors{hint}")
    names = {}
    for file in sorted(files):
        for name in _open(file, "np").keys():
            names[name] = file
    return names


def check_tensors(config: GPT2Config, folder: Path) -> None:
    """Refuse a checkpoint with a missing, extra or misshapen tensor, naming it. Reads headers only."""
    expected, files, opened = tensor_shapes(config), tensor_files(folder), {}
    found = {name.removeprefix("transformer."): (name, file) for name, file in files.items()}
    for name in expected:
        if name not in found:
            raise UserError(f"{folder}: tensor {name} is missing")
    for name, (full, file) in found.items():
        if name not in expected:
            if not IGNORED.fullmatch(name):
                raise UserError(f"{folder}: tensor {full} is not part of a GPT-2 of {config.n_layer} layers")
            continue
        opened.setdefault(file, _open(file, "np"))
        shape = tuple(opened[file].get_slice(full).get_shape())
        if shape != expected[name]:
            raise UserError(f"{folder}: tensor {full} has shape {shape}, config.json says {expected[name]}")


def _open(file: Path, framework: str):
    from safetensors import SafetensorError, safe_open

    try:
        return safe_open(file, framework=framework)
    except (SafetensorError, OSError) as e:
        raise UserError(f"{file} cannot be read as safetensors: {e}") from e


class StoredTensor:
    """A tensor in a safetensors file, of which only the indexed part is read."""

    def __init__(self, file, name: str):
        self.slice = file.get_slice(name)

    def __getitem__(self, index):
        shape, index = self.slice.get_shape(), index if isinstance(index, tuple) else (index,)
        sizes = [len(range(n)[s]) for s, n in zip(index, shape)] + shape[len(index):]
        if 0 in sizes:  # a rank that holds nothing but padding
            import torch

            return torch.empty(sizes)
        return self.slice[index]


class RandomTensor:
    """Seeded random weights, uniform with GPT-2's standard deviation of 0.02 (around 1 for LayerNorm's weight).

    An element is a hash of its name and index, so that any shard of it is the same on every device and at every
    TP size, and costs only itself. The hash is Wellons' lowbias32. like: whose device and dtype they are made in
    """

    def __init__(self, name: str, shape: tuple[int, ...], seed: int, like):
        self.shape, self.seed, self.like = shape, zlib.crc32(f"{seed}:{name}".encode()), like
        self.offset = 1.0 if re.search(r"ln_\w\.weight", name) else 0.0

    def __getitem__(self, index):
        import torch

        index = index if isinstance(index, tuple) else (index,)
        device = self.like.device
        axes = [torch.arange(n, dtype=torch.int32, device=device)[s] for n, s in zip(self.shape, (*index, slice(None)))]
        out = self.like.new_empty([len(axis) for axis in axes])
        chunk = CHUNK if device.type == "cpu" else 4 * CHUNK
        rows = max(1, chunk // max(1, out[:1].numel()))
        for part, first in zip(out.split(rows), axes[0].split(rows)):
            x = (first if len(axes) == 1 else first[:, None] * self.shape[1] + axes[1]) ^ (self.seed - 2**31)
            x = (x ^ (x >> 16 & 0xFFFF)).mul_(0x7FEB352D)  # int32 wraps, and >> keeps the sign: mask it off
            x = (x ^ (x >> 15 & 0x1FFFF)).mul_(0x846CA68B - 2**32)
            part.copy_((x ^ (x >> 16 & 0xFFFF)).float().mul_(0.02 * 3**0.5 / 2**31).add_(self.offset))
        return out


def load_model(model: str, world, plan: str = "shipped", dtype: str = "float32", backend: str | None = None,
               cache: CacheConfig = CacheConfig()):
    """One rank of a GPT-2, with its weights, on the world's device.

    model    a name as above; plan "shipped" or "as-drawn"; dtype "float32", "float16" or "bfloat16"
    backend  force an attention backend by name; None lets the selector choose
    Returns `gpt2.GPT2Model`. Raises UserError for what a user can mend.
    """
    import torch

    from .attention.platform import this_machine
    from .attention.selector import get_attn_backend
    from .gpt2 import GPT2Model, attention_heads

    config, folder = find_checkpoint(model)
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    heads = attention_heads(config, world, plan)
    choice = get_attn_backend(heads, config.head_size, dtype, cache.block_size, cache.cache_dtype, force=backend,
                              platform=this_machine(world.device.type))
    impl = choice.bind()(heads, config.head_size, getattr(torch, dtype), cache.block_size, cache.cache_dtype)
    with torch.device(world.device), dtype_as_default(getattr(torch, dtype)):
        gpt2 = GPT2Model(config, world, impl, plan).requires_grad_(False)
    gpt2.choice = choice
    load_weights(gpt2, folder)
    return gpt2


def load_weights(gpt2, folder: Path | None, seed: int = 0) -> None:
    """Fill a model with this rank's part of a checkpoint, or with seeded random weights (folder None)."""
    import torch

    files = tensor_files(folder) if folder else {}
    found = {name.removeprefix("transformer."): name for name in files}
    opened = {file: _open(file, "pt") for file in set(files.values())}
    shapes = tensor_shapes(gpt2.config)

    def tensor(name):
        return StoredTensor(opened[files[found[name]]], found[name]) if folder else \
            RandomTensor(name, shapes[name], seed, gpt2.wte.weight)

    with torch.no_grad():
        for name, module in gpt2.named_modules():
            if hasattr(module, "load"):
                module.load(*(tensor(f"{name}.{part}") for part, _ in module.named_parameters(recurse=False)))


class dtype_as_default:
    """torch's default dtype, for the time of a block."""

    def __init__(self, dtype):
        self.dtype = dtype

    def __enter__(self):
        import torch

        self.before = torch.get_default_dtype()
        torch.set_default_dtype(self.dtype)

    def __exit__(self, *exc):
        import torch

        torch.set_default_dtype(self.before)
