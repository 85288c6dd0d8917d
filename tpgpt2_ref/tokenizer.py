"""From text to token ids and back.

    a checkpoint's own BPE    tokenizer.json, or vocab.json + merges.txt, through the package `tokenizers`
    GPT-2's 256 byte tokens   in the vocabulary of every GPT-2, so any text can be written with them

Source: Radford et al. 2019, section 2.2: byte-level BPE starts from the 256 bytes and merges frequent pairs.
Both tokenizers have `encode(text) -> ids` and `decode(ids) -> text`. No file is fetched here: a checkpoint from
the hub brings its tokenizer into the cache.
"""
from __future__ import annotations

import sys
from pathlib import Path

from .errors import UserError
from .weights import ON_BOARD

# GPT-2 numbers the printable bytes first: id 0 is "!", 93 "~", then "¡" and on; space is 220.
BYTE_OF_ID = bytes([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100),
                    *range(0x21), *range(0x7F, 0xA1), 0xAD])
ID_OF_BYTE = bytes(BYTE_OF_ID.index(byte) for byte in range(256))


class ByteTokenizer:
    """One token a byte, under the ids that GPT-2's vocabulary gives to single bytes: 0 to 255."""

    def __init__(self, eos: int | None = 256):
        self.eos = eos

    def encode(self, text: str) -> list[int]:
        return list(text.encode("utf-8", "surrogateescape").translate(ID_OF_BYTE))

    def decode(self, ids: list[int]) -> str | None:
        """The text, without end tokens; None where an id is no byte, since then there is no text to show."""
        ids = [i for i in ids if i != self.eos]
        if any(i > 255 for i in ids):
            return None
        return bytes(ids).translate(BYTE_OF_ID).decode("utf-8", "replace")


class BPETokenizer:
    """A `tokenizers.Tokenizer` behind the same two methods."""

    def __init__(self, bpe):
        self.bpe = bpe

    def encode(self, text: str) -> list[int]:
        return self.bpe.encode(text).ids

    def decode(self, ids: list[int]) -> str:
        return self.bpe.decode(ids, skip_special_tokens=True)


def load_tokenizer(model: str, vocab_size: int) -> ByteTokenizer | BPETokenizer | None:
    """The tokenizer of a model: a folder, a hub name, "random:NAME" or "tiny"; None if its vocabulary lacks the bytes.

    A vocabulary of 257 is the 256 bytes and the end token. For any other, bytes are the second choice: then a word
    on stderr says so.
    """
    here = [folder for folder in (ON_BOARD / model, Path(model)) if folder.is_dir()]
    folder = here[0] if here else _cached(model.removeprefix("random:"))
    if folder and (bpe := load_bpe(folder)):
        return bpe
    if vocab_size < 256:
        return None
    if vocab_size != 257:
        print(f"{model}: its tokenizer is not at hand (tokenizer.json, or vocab.json and merges.txt; and the package "
              "tokenizers), so each byte of text is a token", file=sys.stderr)
    return ByteTokenizer(eos=vocab_size - 1)  # GPT-2's end token is the last of its vocabulary


def load_bpe(folder: Path) -> BPETokenizer | None:
    """The BPE that lies in a folder, or None: no files, or no package to read them."""
    whole, vocab, merges = (folder / name for name in ("tokenizer.json", "vocab.json", "merges.txt"))
    if not whole.exists() and not (vocab.exists() and merges.exists()):
        return None
    try:
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    except ImportError:
        return None
    try:
        if whole.exists():
            return BPETokenizer(Tokenizer.from_file(str(whole)))
        bpe = Tokenizer(models.BPE.from_file(str(vocab), str(merges)))
    except Exception as e:  # `tokenizers` raises bare Exception for a bad file
        raise UserError(f"{folder}: the tokenizer cannot be read: {e}") from e
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.add_special_tokens([AddedToken("<|endoftext|>", special=True, normalized=False)])
    return BPETokenizer(bpe)


def _cached(name: str) -> Path | None:
    """Where the hub's cache holds the tokenizer of a hub name, or None."""
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    for file in ("tokenizer.json", "merges.txt"):
        if isinstance(path := try_to_load_from_cache(name, file), str):
            return Path(path).parent
    return None
