"""From text to token ids and back.

    a checkpoint's own BPE    its tokenizer.json, or vocab.json and merges.txt, through the package `tokenizers`,
                              with all that lies beside them: added and special tokens, prefix space, bos
    bytes                     where the vocabulary is the 256 bytes and an end token, as the model on board has it

The ids and texts are those of transformers' GPT-2 tokenizer. What a tokenizer.json says of truncation and padding
is of training, and does not count.
Source: Radford et al. 2019, section 2.2: byte-level BPE starts from the 256 bytes and merges frequent pairs.
Both tokenizers have `encode(text) -> ids`, `decode(ids) -> text`, and `decode_bytes(ids)`, whose pieces can be joined
where a character is cut. No file is fetched here: a checkpoint from the hub brings its tokenizer into the cache.
"""
from __future__ import annotations

import json
import sys
from pathlib import Path

from .config import FAMILY
from .errors import UserError
from .files import field, read_json, read_text, shown
from .weights import find_folder

# GPT-2 numbers the printable bytes first: id 0 is "!", 93 "~", then "¡" and on; space is 220.
BYTE_OF_ID = bytes([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100),
                    *range(0x21), *range(0x7F, 0xA1), 0xAD])
ID_OF_BYTE = bytes(BYTE_OF_ID.index(byte) for byte in range(256))
# A byte-level vocabulary writes a token with one letter a byte: a printable byte as itself, the others from U+0100 on.
BYTE_OF_LETTER = {chr(byte if i < 188 else 0x100 + i - 188): byte for i, byte in enumerate(BYTE_OF_ID)}

END = "<|endoftext|>"
GPT2_CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast")
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ByteTokenizer:
    """One token a byte, under the ids that GPT-2's vocabulary gives to single bytes: 0 to 255."""

    def __init__(self, eos: int | None = 256):
        self.eos = eos

    def encode(self, text: str) -> list[int]:
        try:
            return list(text.encode("utf-8", "surrogateescape").translate(ID_OF_BYTE))
        except UnicodeEncodeError as e:
            raise UserError(f"the text is no Unicode: {e}") from e

    def decode_bytes(self, ids: list[int]) -> bytes | None:
        """What the ids stand for, without end tokens; None where an id is no byte, since then there is no text."""
        ids = [i for i in ids if i != self.eos]
        return None if any(i > 255 for i in ids) else bytes(ids).translate(BYTE_OF_ID)

    def decode(self, ids: list[int]) -> str | None:
        """The text; None where an id is no byte. A character that is cut is U+FFFD."""
        data = self.decode_bytes(ids)
        return None if data is None else data.decode("utf-8", "replace")


class BPETokenizer:
    """A `tokenizers.Tokenizer` behind the same methods."""

    def __init__(self, bpe):
        self.bpe = bpe
        self.special = {i for i in bpe.get_added_tokens_decoder() if not bpe.decode([i], skip_special_tokens=True)}

    def encode(self, text: str) -> list[int]:
        try:
            text.encode()  # a lone surrogate is no text
        except UnicodeEncodeError as e:
            raise UserError(f"the text is no Unicode: {e}") from e
        return self.bpe.encode(text).ids

    def decode_bytes(self, ids: list[int]) -> bytes:
        """What the ids stand for, without special tokens."""
        if type(self.bpe.decoder).__name__ != "ByteLevel":
            return self.decode(ids).encode()
        tokens = [token for i in ids if i not in self.special and (token := self.bpe.id_to_token(i)) is not None]
        return b"".join(bytes(BYTE_OF_LETTER[c] for c in token) if all(c in BYTE_OF_LETTER for c in token)
                        else token.encode() for token in tokens)

    def decode(self, ids: list[int]) -> str:
        """The text without special tokens. A character that is cut is U+FFFD."""
        return self.bpe.decode(ids, skip_special_tokens=True)


def load_tokenizer(model: str, vocab_size: int) -> ByteTokenizer | BPETokenizer | None:
    """The tokenizer of a model: a folder, a hub name, "random:NAME" or "tiny"; None where it has none.

    Random weights know no words: where GPT-2's own tokenizer is not at hand, any will do, and a word on stderr says
    that it is the bytes. Raises UserError for files that can't be read.
    """
    folder = find_folder(model) or _cached(model.removeprefix("random:"))
    if folder and (bpe := load_bpe(folder)):
        return bpe
    if vocab_size in (256, 257):
        return ByteTokenizer(eos=256 if vocab_size == 257 else None)
    if not model.startswith("random:"):
        return None
    print(f"{model}: GPT-2's tokenizer is not at hand, so each byte of text is a token", file=sys.stderr)
    return ByteTokenizer(eos=FAMILY["gpt2"].eos_token_id)


def load_bpe(folder: Path) -> BPETokenizer | None:
    """The BPE that lies in a folder, with its added tokens; None where there is none."""
    whole, parts = folder / "tokenizer.json", [folder / "vocab.json", folder / "merges.txt"]
    if not whole.exists() and not all(part.exists() for part in parts):
        return None
    try:
        from tokenizers import AddedToken
    except ImportError as e:
        raise UserError(f"{folder} has a tokenizer, and to read it takes a package: pip install tokenizers") from e

    stored = read_json(whole) if whole.exists() else None
    for part in parts if stored is None else []:
        read_text(part)  # whatever it is: `tokenizers` opens it by itself
    settings = _read_if_there(folder / "tokenizer_config.json")
    try:
        bpe = _pipeline(folder, stored, settings)
        numbered, named, extra = _tokens(folder, stored, settings)
        known = set(map(str, (*bpe.get_added_tokens_decoder().values(), *numbered)))
        tokens = list(numbered)
        for token in (*named.values(), *extra):  # one token under two names: the last one's flags count
            if str(token) not in known and token not in tokens:
                tokens.append(token)
        tokens = [token if isinstance(token, AddedToken) else AddedToken(token, special=True) for token in tokens]
        for token in tokens:
            token.special = token.special or str(token) in map(str, named.values())
        bpe.add_tokens(tokens)
        bpe.encode_special_tokens = bool(settings.get("split_special_tokens", False))
        if stored is None:
            _frame(bpe, settings, named)
    except UserError:
        raise
    except Exception as e:  # `tokenizers` raises bare Exception for a bad file
        raise UserError(f"{folder}: the tokenizer cannot be read: {' '.join(str(e).split())}") from e
    bpe.no_truncation(), bpe.no_padding()
    return BPETokenizer(bpe)


def _read_if_there(path: Path) -> dict:
    return read_json(path) if path.exists() else {}


def _pipeline(folder: Path, stored: dict | None, settings: dict):
    """The `tokenizers.Tokenizer` of a folder, still without added tokens.

    A tokenizer_config.json that names another class than GPT-2's gets its tokenizer.json as it is. For GPT-2's, as
    in transformers, only the vocabulary, the merges and what frames a text are taken from it.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    if stored is None:
        bpe = Tokenizer(models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt")))
    elif settings.get("tokenizer_class") not in GPT2_CLASSES:
        return Tokenizer.from_file(str(folder / "tokenizer.json"))
    else:
        model = field(stored, "model", dict, folder / "tokenizer.json")
        pairs = field(model, "merges", list, folder / "tokenizer.json", "model.")
        pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in pairs]
        bpe = Tokenizer(models.BPE(field(model, "vocab", dict, folder / "tokenizer.json", "model."), pairs))
        bpe.post_processor = Tokenizer.from_str(json.dumps({**stored, "added_tokens": [], "model": {
            **model, "vocab": {}, "merges": []}})).post_processor
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.get("add_prefix_space", False)))
    bpe.decoder = decoders.ByteLevel()
    return bpe


def _tokens(folder: Path, stored: dict | None, settings: dict):
    """(added tokens in the order of their ids, {name: special token}, further special tokens), as the files have them.

    tokenizer_config.json's `added_tokens_decoder` says it all where it is there. Older folders spread it over
    special_tokens_map.json, added_tokens.json and tokenizer.json.
    """
    from tokenizers import AddedToken

    def token(value, **more):
        return AddedToken(**{k: v for k, v in {**value, **more}.items() if k not in ("id", "__type")}) \
            if isinstance(value, dict) else value

    settings = {key: token(value) if isinstance(value, dict) and "content" in value else value
                for key, value in settings.items()}
    extra = settings.get("extra_special_tokens") or settings.get("additional_special_tokens")
    found = []  # (id, token), the last one of an id and the last one of a content count
    if "added_tokens_decoder" in settings:
        found = [(int(i), token(value)) for i, value in settings["added_tokens_decoder"].items()]
    else:
        special = _read_if_there(folder / "special_tokens_map.json")
        for key, value in special.items():
            settings[key] = token(value, special=True) if isinstance(value, dict) else value
        extra = special.get("extra_special_tokens", extra)
        names = {str(t) for t in (*(settings.get(name) for name in NAMED), *(extra or [])) if t}
        for content, i in _read_if_there(folder / "added_tokens.json").items():
            found.append((i, AddedToken(content, normalized=content not in names, special=content in names)))
        for value in stored.get("added_tokens", []) if stored else []:
            found.append((value["id"], token(value)))
        if extra is None:
            extra = special.get("additional_special_tokens")
    extra = extra or []
    if isinstance(extra, dict):
        settings, extra = {**settings, **extra}, []
    if stored is None or settings.get("tokenizer_class") in GPT2_CLASSES:
        defaults = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END)
    else:  # a tokenizer.json taken as it is: its padding does not count, but its padding token is one
        defaults = {"pad_token": (stored.get("padding") or {}).get("pad_token")}
    names = [*NAMED, *(key for key in settings if key.endswith("_token") and key not in NAMED)]
    named = {name: value for name in names if (value := settings.get(name, defaults.get(name))) is not None
             and not isinstance(value, bool)}
    for name, value in named.items():
        if not isinstance(value, (str, AddedToken)):
            raise UserError(f"{folder}: {name} is {shown(value)}, which is no token")
    numbered, by_content = dict(found), {str(t): t for _, t in found}
    named = {name: by_content.get(str(t), t) for name, t in named.items()}
    return [t for _, t in sorted(numbered.items())], named, [token(t) for t in extra]


def _frame(bpe, settings: dict, named: dict) -> None:
    """Begin a text with bos and end it with eos, where tokenizer_config.json says so."""
    from tokenizers import processors

    ids = {}
    for name in ("bos", "eos"):
        token = named.get(f"{name}_token")
        if settings.get(f"add_{name}_token") and token is not None:
            ids[name] = str(token), bpe.token_to_id(str(token))
    if ids:
        bpe.post_processor = processors.TemplateProcessing(
            single=[*([ids["bos"][0]] if "bos" in ids else []), "$A", *([ids["eos"][0]] if "eos" in ids else [])],
            special_tokens=list(ids.values()))


def _cached(name: str) -> Path | None:
    """Where the hub's cache holds the tokenizer of a hub name, or None."""
    try:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError
    except ImportError:
        return None
    try:
        for file in ("tokenizer.json", "merges.txt"):
            if isinstance(path := try_to_load_from_cache(name, file), str):
                return Path(path).parent
    except HFValidationError:
        pass  # no hub name
    return None
