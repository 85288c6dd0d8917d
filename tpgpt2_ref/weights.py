"""From a checkpoint to this rank's shards.

    a folder      config.json + *.safetensors, as Hugging Face writes them
    a hub name    "gpt2", fetched with huggingface_hub (or found in its cache)
    "tiny"        the model on board (see checkpoints/tiny)
    "random:gpt2" seeded random weights in the real shapes, the same at every TP size

Every name and shape is checked against the configuration before the first tensor is read, and each layer
reads just its own slice of each tensor.
"""
from __future__ import annotations

import os
import re
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from .config import DTYPES, FAMILY, CacheConfig, GPT2Config
from .errors import UserError
from .files import field, read_json

ON_BOARD = Path(__file__).parent / "checkpoints"
CHUNK = 1 << 18  # random elements made at once, so that they stay in a CPU's cache; on a GPU four times as many
MASKS = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # causal masks, which old checkpoints store
STORED_AS = ("F64", "F32", "F16", "BF16")
FROM_HUB = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json",
            "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
            "merges.txt")


class Place(NamedTuple):
    """Where a tensor is stored: the file, and its name there (with or without `transformer.` in front)."""

    file: Path
    name: str


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found and fits its configuration: every tensor, of the right shape, and no other.

    folder and places are None and empty for random weights. places: {name of a parameter: where it is stored}
    """

    config: GPT2Config
    folder: Path | None
    places: dict[str, Place]


def find_checkpoint(model: str) -> Checkpoint:
    """The checkpoint of a model name. It reads headers, not tensors (but to see whether two heads are one).

    Raises UserError for an unknown name, and for a folder whose tensors are not the configuration's.
    """
    if model.startswith("random:"):
        name = model.removeprefix("random:")
        if name not in FAMILY:
            raise UserError(f"unknown configuration {name!r}; known: {', '.join('random:' + n for n in FAMILY)}")
        return Checkpoint(FAMILY[name], None, {})
    folder = find_folder(model) or _from_hub(model)
    config = GPT2Config.from_json(folder / "config.json")
    return check_tensors(config, folder)


def find_folder(model: str) -> Path | None:
    """The folder on board, for a plain name such as "tiny", or the folder of that path; None if there is neither."""
    if re.fullmatch(r"\w+", model) and (ON_BOARD / model / "config.json").is_file():
        return ON_BOARD / model
    return Path(model) if os.path.isdir(model) else None


def _from_hub(model: str) -> Path:
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", model):
        raise UserError(f"{model!r} is no folder with config.json and safetensors")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, allow_patterns=list(FROM_HUB), etag_timeout=5))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as e:
        raise UserError(f"{model!r} is neither a local folder nor to be had from the hub "
                        f"({type(e).__name__}). Without a network use 'tiny', 'random:gpt2' or a local folder") from e


def tensor_shapes(config: GPT2Config):
    """(name, shape) of each tensor of a GPT-2 checkpoint. Matrices are (in, out): OpenAI's Conv1D."""
    d, inner = config.n_embd, config.inner
    yield "wte.weight", (config.vocab_size, d)
    yield "wpe.weight", (config.n_positions, d)
    for i in range(config.n_layer):
        for name, shape in {"ln_1": (d,), "attn.c_attn": (d, 3 * d), "attn.c_proj": (d, d),
                            "ln_2": (d,), "mlp.c_fc": (d, inner), "mlp.c_proj": (inner, d)}.items():
            yield f"h.{i}.{name}.weight", shape
            yield f"h.{i}.{name}.bias", shape[-1:]
    yield "ln_f.weight", (d,)
    yield "ln_f.bias", (d,)
    if not config.tie_word_embeddings:
        yield "lm_head.weight", (config.vocab_size, d)


def tensor_files(folder: Path) -> list[Path]:
    """The files that transformers would read: model.safetensors, or else those that the index names, no others."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if not index.exists():
        hint = " (pytorch_model.bin is not read: save it again with safe_serialization=True)" \
            if (folder / "pytorch_model.bin").exists() else ""
        raise UserError(f"{folder} holds no weights: expected model.safetensors{hint}")
    names = field(read_json(index), "weight_map", dict, index)
    for name in names:
        file = field(names, name, str, index, "weight_map.")
        if Path(file).name != file or not (folder / file).is_file():
            raise UserError(f"{index}: weight_map sends {name} to {file!r}, which is no file beside it")
    return sorted({folder / file for file in names.values()})


def check_tensors(config: GPT2Config, folder: Path) -> Checkpoint:
    """Refuse a checkpoint with a missing, extra or misshapen tensor, naming it.

    The head follows transformers: `lm_head.weight` is a head of its own where the configuration unties it, or where
    it is stored and differs from `wte.weight`; where it alone is stored, it is both.
    """
    opened = {file: _open(file, "np") for file in tensor_files(folder)}
    places = {}
    for file, tensors in opened.items():
        for full in tensors.keys():
            name = full.removeprefix("transformer.")
            if name in places:
                raise UserError(f"{folder}: tensor {name} is stored twice, in {places[name].file.name} as "
                                f"{places[name].name} and in {file.name} as {full}")
            places[name] = Place(file, full)
    if config.tie_word_embeddings and "lm_head.weight" in places:
        head = places["lm_head.weight"]
        if _same(places.setdefault("wte.weight", head), head):
            del places["lm_head.weight"]
        else:
            config = replace(config, tie_word_embeddings=False)
    found = {}
    for name, shape in tensor_shapes(config):
        if name not in places:
            raise UserError(f"{folder}: tensor {name} is missing")
        file, full = found[name] = places.pop(name)
        stored = opened[file].get_slice(full)
        if tuple(stored.get_shape()) != shape:
            raise UserError(f"{folder}: tensor {full} has shape {tuple(stored.get_shape())}, config.json says {shape}")
        if stored.get_dtype() not in STORED_AS:
            raise UserError(f"{folder}: tensor {full} is {stored.get_dtype()}; weights must be {', '.join(STORED_AS)}")
    for name, place in places.items():
        if not MASKS.fullmatch(name):
            raise UserError(f"{folder}: tensor {place.name} is not part of a GPT-2 of {config.n_layer} layers")
    return Checkpoint(config, folder, found)


def _same(one: Place, two: Place) -> bool:
    """Whether two stored tensors hold the same numbers. Reads a part at a time, up to the first that differs."""
    if one == two:
        return True
    a, b = (_open(place.file, "pt").get_slice(place.name) for place in (one, two))
    if a.get_shape() != b.get_shape():
        return False
    rows = a.get_shape()[0] if a.get_shape() else 0
    return all((a[i : i + 4096].float() == b[i : i + 4096].float()).all() for i in range(0, rows, 4096))


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


def load_model(model: str | Checkpoint, world, plan: str = "shipped", dtype: str = "float32",
               backend: str | None = None, cache: CacheConfig = CacheConfig()):
    """One rank of a GPT-2, with its weights, on the world's device.

    model    a name as above, or what `find_checkpoint` made of it; plan "shipped" or "as-drawn"
    dtype    "float32", "float16" or "bfloat16"
    backend  force an attention backend by name; None lets the selector choose
    Returns `gpt2.GPT2Model`. Raises UserError for what a user can mend.
    """
    import torch

    from .attention.platform import this_machine
    from .attention.selector import get_attn_backend
    from .gpt2 import GPT2Model, attention_heads

    checkpoint = find_checkpoint(model) if isinstance(model, str) else model
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; known: {', '.join(DTYPES)}")
    config = checkpoint.config
    heads = attention_heads(config, world, plan)
    choice = get_attn_backend(heads, config.head_size, dtype, cache.block_size, cache.cache_dtype, force=backend,
                              platform=this_machine(world.device.type))
    impl = choice.bind()(heads, config.head_size, getattr(torch, dtype), cache.block_size, cache.cache_dtype)
    with torch.device(world.device), dtype_as_default(getattr(torch, dtype)):
        gpt2 = GPT2Model(config, world, impl, plan).requires_grad_(False)
    gpt2.choice = choice
    load_weights(gpt2, checkpoint)
    return gpt2


def load_weights(gpt2, checkpoint: Checkpoint, seed: int = 0) -> None:
    """Fill a model with this rank's part of a checkpoint, or with seeded random weights (no folder)."""
    import torch

    places = checkpoint.places
    opened = {file: _open(file, "pt") for file in {place.file for place in places.values()}}
    shapes = dict(tensor_shapes(checkpoint.config))

    def tensor(name):
        return StoredTensor(opened[places[name].file], places[name].name) if checkpoint.folder else \
            RandomTensor(name, shapes[name], seed, gpt2.wte.weight)

    with torch.no_grad():
        for name, module in gpt2.named_modules():
            if hasattr(module, "load") and not (name == "lm_head" and checkpoint.config.tie_word_embeddings):
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
