"""Bytes and BPE: what goes in comes out, under GPT-2's ids."""
import json

import pytest

from tpgpt2_ref.errors import UserError
from tpgpt2_ref.tokenizer import BYTE_OF_ID, BPETokenizer, ByteTokenizer, load_tokenizer

TEXTS = ["", " ", "The quick brown fox", "naïve café, 東京, 🐍\n\ttabs", "\x00\x7f\xad"]


def test_byte_order_is_that_of_gpt2():
    assert ByteTokenizer().encode("!~ \n") == [0, 93, 220, 198]  # as in GPT-2's encoder.json
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")  # GPT-2's ids follow this table's order
    assert list(convert.bytes_to_unicode()) == list(BYTE_OF_ID)


def test_every_byte_round_trips():
    tok = ByteTokenizer()
    assert sorted(sum((tok.encode(bytes([b]).decode("utf-8", "surrogateescape")) for b in range(256)), [])) \
        == list(range(256))
    for text in TEXTS:
        assert tok.decode(tok.encode(text)) == text


def test_decode_of_what_is_no_text():
    tok = ByteTokenizer(eos=256)
    assert tok.decode([*tok.encode("end"), 256]) == "end"
    assert tok.decode(tok.encode("é")[:1]) == "\ufffd"  # half a character
    assert tok.decode([300]) is None


@pytest.fixture(scope="module")
def bpe():
    """A small BPE trained on the spot, shaped as GPT-2's: bytes, merges, the end token last."""
    tokenizers = pytest.importorskip("tokenizers")
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(["the cat and the hat and the café"] * 9, vocab_size=270, show_progress=False)
    trained.add_special_tokens(["<|endoftext|>"])
    return trained


@pytest.mark.parametrize("layout", ["tokenizer.json", "vocab.json"])
def test_bpe_of_a_folder(bpe, layout, tmp_path, capsys):
    if layout == "tokenizer.json":
        bpe.save(str(tmp_path / layout))
    else:
        bpe.save_model(str(tmp_path))
        ids = {**json.loads((tmp_path / layout).read_text()), "<|endoftext|>": bpe.get_vocab_size() - 1}
        (tmp_path / layout).write_text(json.dumps(ids))
    tok = load_tokenizer(str(tmp_path), bpe.get_vocab_size())
    assert isinstance(tok, BPETokenizer) and capsys.readouterr().err == ""
    for text in TEXTS + ["the cat and the hat"]:
        assert tok.encode(text) == bpe.encode(text).ids
        assert tok.decode(tok.encode(text)) == text
    assert len(tok.encode("the cat")) < len("the cat")
    assert tok.decode([*tok.encode("cat"), bpe.token_to_id("<|endoftext|>")]) == "cat"


def test_without_a_tokenizer_bytes_and_a_word_about_it(tmp_path, capsys):
    tok = load_tokenizer(str(tmp_path), 50257)
    assert isinstance(tok, ByteTokenizer) and tok.eos == 50256
    assert "each byte of text is a token" in capsys.readouterr().err
    assert load_tokenizer(str(tmp_path), 257).eos == 256  # a vocabulary of bytes: nothing is missing
    assert load_tokenizer(str(tmp_path), 101) is None
    assert capsys.readouterr().err == ""


def test_a_broken_tokenizer_is_named(tmp_path):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="tokenizer cannot be read"):
        load_tokenizer(str(tmp_path), 257)
