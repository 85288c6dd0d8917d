"""Bytes and BPE: what goes in comes out, under the ids that transformers gives."""
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpgpt2_ref.errors import UserError
from tpgpt2_ref.tokenizer import BYTE_OF_ID, BYTE_OF_LETTER, BPETokenizer, ByteTokenizer, load_tokenizer

TEXTS = ["", " ", "The quick brown fox", "naïve café, 東京, 🐍\n\ttabs", "\x00\x7f\xad"]


def test_byte_order_is_that_of_gpt2():
    assert ByteTokenizer().encode("!~ \n") == [0, 93, 220, 198]  # as in GPT-2's encoder.json
    convert = pytest.importorskip("transformers.convert_slow_tokenizer")  # GPT-2's ids follow this table's order
    assert list(convert.bytes_to_unicode()) == list(BYTE_OF_ID)
    assert {letter: byte for byte, letter in convert.bytes_to_unicode().items()} == BYTE_OF_LETTER


@given(st.binary())
def test_every_byte_round_trips(data):
    tok = ByteTokenizer()
    ids = tok.encode(data.decode("utf-8", "surrogateescape"))
    assert tok.decode_bytes(ids) == data and tok.decode([*ids, 256]) == data.decode("utf-8", "replace")


def test_what_is_no_text():
    assert ByteTokenizer().decode([300]) is None and ByteTokenizer().decode_bytes([300]) is None
    with pytest.raises(UserError, match="no Unicode"):
        ByteTokenizer().encode("\ud800")


@pytest.fixture(scope="module")
def bpe():
    """A small BPE trained on the spot, shaped as GPT-2's: bytes, merges, the end token last."""
    tokenizers = pytest.importorskip("tokenizers")
    trained = tokenizers.ByteLevelBPETokenizer()
    trained.train_from_iterator(["the cat and the hat and the café"] * 9, vocab_size=270, show_progress=False)
    trained.add_special_tokens(["<|endoftext|>"])
    return trained


NEW = ["<|user|>", "<pad>", "<|endoftext|>", "é!", " hat", "cat"]  # new to the vocabulary, or not
FLAGS = st.fixed_dictionaries({flag: st.booleans() for flag in ("lstrip", "rstrip", "single_word", "normalized",
                                                                "special")})
TOKEN = st.sampled_from(NEW)


def names(**kind):
    """{name of a special token: the token, as text or as an object of that kind}."""
    token = st.sampled_from(NEW[:4])  # a space in bos or eos is refused there
    whole = st.builds(lambda content, flags: {"content": content, **flags, **kind}, token, FLAGS)
    return st.dictionaries(st.sampled_from(["bos_token", "eos_token", "unk_token", "pad_token"]), token | whole)


@st.composite
def folders(draw):
    """{file name: content} of what may lie beside a BPE's own files."""
    new = draw(st.lists(TOKEN, unique=True))
    config = draw(st.fixed_dictionaries({}, optional={
        "tokenizer_class": st.sampled_from(["GPT2Tokenizer", "PreTrainedTokenizerFast"]),
        "add_prefix_space": st.booleans(), "bos_token": st.none(),
        "add_bos_token": st.booleans(), "add_eos_token": st.booleans(), "model_max_length": st.just(1000),
        "errors": st.just("replace"), "clean_up_tokenization_spaces": st.booleans(),
        "split_special_tokens": st.booleans(), "additional_special_tokens": st.lists(TOKEN, unique=True)}))
    config.update(draw(names(__type="AddedToken")))
    if draw(st.booleans()):
        config["added_tokens_decoder"] = {str(269 + i): {"content": t, **draw(FLAGS)} for i, t in enumerate(new)}
    special = {**draw(names()), "additional_special_tokens": draw(st.lists(TOKEN, unique=True))}
    there = {"tokenizer_config.json": config, "added_tokens.json": {t: 270 + i for i, t in enumerate(new)},
             "special_tokens_map.json": special}
    return {file: there[file] for file in draw(st.sets(st.sampled_from(sorted(there))))}


@settings(max_examples=80, deadline=None)
@given(data=st.data(), files=folders(), stored=st.booleans(), cut=st.booleans(), pad=st.booleans())
def test_a_folder_reads_as_in_transformers(bpe, data, files, stored, cut, pad):
    """Whatever a GPT-2 folder carries beside its vocabulary, ids and texts are those of transformers."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if stored:
            whole = Tokenizer.from_str(bpe.to_str())
            if cut:
                whole.enable_truncation(4)
            if pad:
                whole.enable_padding(length=12)
            whole.save(str(folder / "tokenizer.json"))
        else:
            bpe.save_model(name)
        for file, content in files.items():
            (folder / file).write_text(json.dumps(content))
        its = files.get("tokenizer_config.json", {}).get("tokenizer_class", "GPT2Tokenizer")
        theirs = getattr(transformers, its if stored else "GPT2Tokenizer").from_pretrained(name)
        ours = load_tokenizer(name, 300)
    pieces = st.sampled_from([*NEW, "the cat", " the hat", "café", "東京 🐍", "\n", "  "])
    for text in [*TEXTS, *data.draw(st.lists(st.lists(pieces).map("".join), min_size=3, max_size=3))]:
        ids = ours.encode(text)
        assert ids == theirs(text)["input_ids"]
        ids = data.draw(st.lists(st.sampled_from(ids or [0]))) if ids else []  # characters are cut, too
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
        assert ours.decode_bytes(ids).decode("utf-8", "replace") == ours.decode(ids)


def test_a_token_whose_number_another_has(bpe, tmp_path):
    """It is added under the next free number, with the flags of added_tokens.json rather than of the special tokens."""
    transformers = pytest.importorskip("transformers")
    bpe.save(str(tmp_path / "tokenizer.json"))
    taken = bpe.get_vocab_size() - 1
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<|user|>": taken}))
    (tmp_path / "special_tokens_map.json").write_text(json.dumps({"bos_token": {
        "content": "<|user|>", "single_word": True, "lstrip": False, "rstrip": False, "normalized": False}}))
    text = " hat<|user|>"
    ids = load_tokenizer(str(tmp_path), 300).encode(text)
    assert ids == transformers.GPT2Tokenizer.from_pretrained(tmp_path)(text)["input_ids"] and ids[-1] == taken + 1


def test_the_padding_token_of_a_tokenizer_that_is_taken_as_it_is(bpe, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer

    whole = Tokenizer.from_str(bpe.to_str())
    whole.enable_padding(length=12)
    whole.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({
        "tokenizer_class": "PreTrainedTokenizerFast", "additional_special_tokens": ["<|user|>"]}))
    theirs, ours = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path), load_tokenizer(str(tmp_path), 300)
    for text in ("<|user|>", "[PAD]", "a [PAD] the cat"):
        assert ours.encode(text) == theirs(text)["input_ids"]


def test_bytes_where_the_vocabulary_is_one(tmp_path, capsys):
    assert load_tokenizer(str(tmp_path), 257).eos == 256
    assert load_tokenizer(str(tmp_path), 256).eos is None
    assert load_tokenizer(str(tmp_path), 101) is load_tokenizer(str(tmp_path), 50257) is None
    assert capsys.readouterr().err == ""


def test_random_weights_take_bytes_and_say_so(monkeypatch, capsys):
    monkeypatch.setattr("tpgpt2_ref.tokenizer._cached", lambda name: None)
    tok = load_tokenizer("random:gpt2", 50257)
    assert isinstance(tok, ByteTokenizer) and tok.eos == 50256
    assert "each byte of text is a token" in capsys.readouterr().err


BROKEN = ["{}", "[]", "{", '{"model": {}}', '{"model": {"vocab": {"a": 0}, "merges": [["a", "b"]]}}',
          '{"model": {"vocab": {"a": "b"}, "merges": []}}', '{"model": {"vocab": {"a": 0}, "merges": [3]}}']


@pytest.mark.parametrize("text", BROKEN)
def test_a_broken_tokenizer_is_named(tmp_path, text):
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(UserError, match="tokenizer"):
        load_tokenizer(str(tmp_path), 257)


ODD = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(st.sampled_from(["content", "special", "pad_token", "x"]), inner), max_leaves=4)
KEYS = st.sampled_from(["added_tokens_decoder", "pad_token", "additional_special_tokens", "extra_special_tokens",
                        "add_prefix_space", "add_bos_token", "bos_token", "tokenizer_class"])


@settings(max_examples=150, deadline=None)
@given(file=st.sampled_from(["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"]),
       content=st.dictionaries(KEYS | st.text(max_size=3), ODD) | ODD)
def test_odd_files_beside_it_are_refused_by_name_or_read(bpe, file, content):
    with tempfile.TemporaryDirectory() as name:
        bpe.save_model(name)
        (Path(name) / file).write_text(json.dumps(content))
        try:
            assert isinstance(load_tokenizer(name, 300), BPETokenizer)
        except UserError as e:
            assert name in str(e)
