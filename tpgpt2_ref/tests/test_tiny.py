"""The model on board: Hugging Face reads the same logits in it, it writes English, and the same at TP=1 and TP=2."""
import re
from dataclasses import replace

import pytest
import torch

from tpgpt2_ref.checkpoints import train_tiny
from tpgpt2_ref.tests.conftest import cli_json
from tpgpt2_ref.tokenizer import ByteTokenizer
from tpgpt2_ref.weights import ON_BOARD, find_checkpoint

PROMPTS = ["Return True if all", "Create and return a"]


def test_folder():
    tiny = find_checkpoint("tiny")  # checks every name and shape
    assert tiny.config == train_tiny.CONFIG and tiny.folder == ON_BOARD / "tiny"
    assert sum(f.stat().st_size for f in tiny.folder.iterdir()) < 6e6
    bits, = re.findall(r"([\d.]+) bits per byte", (tiny.folder / "README.md").read_text())
    assert 1 < float(bits) < 2.5


def test_logits_and_greedy_ids_are_hugging_face_s(tmp_path):
    import numpy as np

    transformers = pytest.importorskip("transformers")
    model = transformers.GPT2LMHeadModel.from_pretrained(ON_BOARD / "tiny", dtype=torch.float32).eval()
    ids = ByteTokenizer().encode("If the class defines a method, the")
    cli_json("logits", "--model", "tiny", "--tp", 2, "--device", "cpu", "--prompt-ids", ",".join(map(str, ids)),
             "--out", tmp_path / "logits.npy")
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0]
        greedy = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False, pad_token_id=256)[0]
    assert np.abs(np.load(tmp_path / "logits.npy") - expected.numpy()).max() < 1e-4
    ours = cli_json("generate", "--model", "tiny", "--device", "cpu", "--prompt-ids", ",".join(map(str, ids)),
                    "--max-new-tokens", 40)
    assert ours["token_ids"][0] == greedy[len(ids):].tolist()


def test_writes_english_the_same_at_tp_1_and_2():
    batch = [arg for p in PROMPTS for arg in ("--prompt-ids", ",".join(map(str, ByteTokenizer().encode(p))))]
    one, two = (cli_json("generate", "--tp", tp, "--device", "cpu", *batch, "--max-new-tokens", 120) for tp in (1, 2))
    assert one["token_ids"] == two["token_ids"] and two["tp"] == 2
    for prompt, ids, new in zip(PROMPTS, one["token_ids"], one["text"]):
        assert ids[-1] == 256  # it ends by itself
        text = prompt + new
        words = re.findall(r"[a-z]+", text.lower())
        assert len(words) > 8 and len(set(words)) > 0.7 * len(words), text  # no loop
        assert list(train_tiny.prose(text)) == [text]  # what training takes for prose


def test_prose_keeps_sentences():
    text = "Return the value of the option as an integer.\n\n>>> f(1)\n\n:param x: the x\n\n* The name of\n  the file."
    assert list(train_tiny.prose(text.replace("file", "file to be opened for reading"))) == \
        ["Return the value of the option as an integer.", "* The name of the file to be opened for reading."]


def test_corpus_is_split_by_file(monkeypatch):
    pages = [(f"file{i}.py", f"This is what the number {i} is for, and no other file has it.") for i in range(99)]
    monkeypatch.setattr(train_tiny, "documents", lambda: iter(pages + pages))
    train_text, held_out_text = (ByteTokenizer(None).decode([i if i < 256 else 198 for i in ids.tolist()])
                                 for ids in train_tiny.corpus())
    lines = train_text.splitlines() + held_out_text.splitlines()
    assert held_out_text and len(lines) == len(set(lines)) == 99


def test_documents_are_docstrings_comments_and_c_functions(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text('"""A module."""\ndef f():\n    """A function."""\n    # Two lines\n    # of it.\n')
    (tmp_path / "broken.py").write_text("def (:\n")
    monkeypatch.setattr(train_tiny.sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "site-packages" / "torch" / "__init__.py"))
    found = list(train_tiny.documents())
    texts = [text for origin, text in found if origin == "a.py"]
    assert texts == ["A module.", "A function.", "Two lines\nof it.\n"]
    assert ("builtins", len.__doc__) in found
    assert not any(origin == "broken.py" for origin, _ in found)


def test_training_lowers_the_loss_and_saves_what_loads(tmp_path, monkeypatch):
    """A few steps on one sentence, shorter and flatter: it learns, and what it saves is a checkpoint."""
    monkeypatch.setattr(train_tiny, "CONFIG", replace(train_tiny.CONFIG, n_layer=2, n_positions=128))
    ids = torch.tensor([*ByteTokenizer().encode("The loss goes down. "), 256] * 60)
    model, bits = train_tiny.train(ids, ids, steps=6, batch=1, dropout=0.1, seed=0)
    assert bits < 6  # of 8
    train_tiny.save(model, tmp_path)
    assert find_checkpoint(str(tmp_path)).config == train_tiny.CONFIG
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.no_grad():
        ours = model.half().float().eval()(ids[None, :50])  # as stored
        torch.testing.assert_close(theirs(ids[None, :50]).logits, ours, atol=1e-4, rtol=0)
