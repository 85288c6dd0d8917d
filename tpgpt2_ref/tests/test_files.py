"""Files of others are read or refused by name, whatever they are; files of our own are written whole or not at all."""
import json
import os
import stat

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tpgpt2_ref import files
from tpgpt2_ref.config import FAMILY, GPT2Config
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.weights import find_checkpoint

SMALL = {"model_type": "gpt2", "n_layer": 2, "n_head": 4, "n_embd": 64, "n_positions": 128, "vocab_size": 257,
         "eos_token_id": 256}
JSON = st.recursive(st.none() | st.booleans() | st.integers(-3, 10**30) | st.floats() | st.text(max_size=4),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
                    max_leaves=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("files")


def reads_or_refuses(read, path):
    """What was read, or None where it was refused in one line that names the file."""
    try:
        return read(path)
    except UserError as e:
        assert str(path.parent) in str(e) and "\n" not in str(e)


@settings(max_examples=100, deadline=None)
@given(content=st.binary(max_size=30) | JSON.map(lambda x: json.dumps(x).encode()))
def test_any_bytes_are_json_or_refused(folder, content):
    (path := folder / "any.json").write_bytes(content)
    document = reads_or_refuses(files.read_json, path)
    assert document is None or document == json.loads(content)


def test_what_is_no_file_of_a_sane_size_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    with (tmp_path / "huge").open("wb") as f:
        f.truncate(files.LARGEST + 1)
    (tmp_path / "deep").write_text("[" * 10**6)
    (tmp_path / "digits").write_text("9" * 5000)
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for path in (*tmp_path.iterdir(), tmp_path / "nowhere", tmp_path / ("x" * 300), "/dev/zero", "/dev/null"):
        with pytest.raises(UserError, match=str(path)):
            files.read_json(path)


@settings(max_examples=200, deadline=None)
@given(change=st.dictionaries(st.sampled_from([*SMALL, "n_inner", "tie_word_embeddings", "layer_norm_epsilon",
                                               "activation_function", "hidden_size"]), JSON))
def test_any_config_is_one_or_refused(folder, change):
    (path := folder / "config.json").write_text(json.dumps({**SMALL, **change}))
    config = reads_or_refuses(GPT2Config.from_json, path)
    if config:
        assert all(type(getattr(config, name)) is int for name in ("n_layer", "n_head", "n_embd", "vocab_size"))
        assert config.head_size * config.n_head == config.n_embd > 0 and config.inner > 0
        assert all(type(end) is int for end in config.end_tokens)


@pytest.mark.parametrize("change, says", [
    ({"n_head": 0}, "n_head=0"), ({"n_head": 4.0}, "n_head is 4.0, which is no whole number"),
    ({"n_layer": "2"}, "n_layer is '2'"), ({"n_layer": True}, "n_layer is True"), ({"n_inner": 0}, "inner=0"),
    ({"n_embd": 66}, "no multiple"), ({"eos_token_id": [1, "2"]}, "eos_token_id, number 1 is '2'"),
    ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan"), ({"model_type": ["gpt2"]}, "model_type="),
    ({"hidden_size": 32}, "hidden_size=32, but n_embd=64"), ({"quantization_config": {}}, "quantization_config="),
    ({"activation_function": "relu"}, "activation_function='relu'"),
])
def test_a_wrong_field_is_named(tmp_path, change, says):
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, **change}))
    with pytest.raises(UserError, match=says):
        GPT2Config.from_json(tmp_path / "config.json")


def test_generation_config_alone_says_where_a_text_ends(tmp_path):
    def ends(generation=None, **config):
        (tmp_path / "config.json").write_text(json.dumps({**SMALL, **config}))
        if generation is not None:
            (tmp_path / "generation_config.json").write_text(json.dumps(generation))
        return GPT2Config.from_json(tmp_path / "config.json").end_tokens

    assert ends() == (256,) and ends(eos_token_id=None) == () and ends(eos_token_id=[3, 256]) == (3, 256)
    assert ends({"eos_token_id": 5}) == (5,) and ends({"eos_token_id": [5, 6]}) == (5, 6) and ends({}) == ()


@settings(max_examples=100, deadline=None)
@given(index=st.dictionaries(st.sampled_from(["weight_map", "metadata"]), JSON) | st.fixed_dictionaries(
    {"weight_map": st.dictionaries(st.text(max_size=5), st.sampled_from(["a", "../a", "/etc/passwd", "", ".", "\0"]))}))
def test_any_index_is_refused_by_name(tmp_path_factory, folder, index):
    (here := folder / "index").mkdir(exist_ok=True)
    (here / "config.json").write_text(json.dumps(SMALL))
    (here / "a").write_bytes(b"no safetensors")
    (here / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=str(here)):
        find_checkpoint(str(here))


def test_a_name_on_board_is_a_plain_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint("tiny").config == find_checkpoint(find_checkpoint("tiny").folder.as_posix()).config
    for name in ("tiny/", "./tiny", ".", "..", "", "/", "__pycache__/"):
        with pytest.raises(UserError):
            find_checkpoint(name)
    assert find_checkpoint("random:gpt2").config == FAMILY["gpt2"]


def test_a_file_is_replaced_whole(tmp_path):
    path, link = tmp_path / "a.json", tmp_path / "link"
    path.write_text("old")
    path.chmod(0o640)
    link.symlink_to(path)
    (tmp_path / "a.json.part").write_text("somebody's")
    files.write_whole(link, "new")
    assert path.read_text() == "new" and link.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.json.part", "link"]
    files.write_whole(tmp_path / "fresh", b"\x00")
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((tmp_path / "fresh").stat().st_mode) == 0o666 & ~mask


def test_what_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(files.Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left")))
    (tmp_path / "a").write_text("old")
    with pytest.raises(UserError, match="No space left"):
        files.write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_devices_and_pipes_are_written_to_as_they_are(tmp_path):
    kind = os.stat("/dev/null").st_rdev
    files.write_whole("/dev/null", "text")
    assert os.stat("/dev/null").st_rdev == kind and stat.S_ISCHR(os.stat("/dev/null").st_mode)
    os.mkfifo(pipe := tmp_path / "pipe")
    full = [("/dev/full", "No space left")] if os.path.exists("/dev/full") else []  # Linux has one
    for path, says in (*full, (pipe, "cannot write"), (tmp_path, "cannot write")):
        with pytest.raises(UserError, match=says):  # a pipe that nobody reads is no wait without end
            files.write_whole(path, "text")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    files.write_whole(pipe, "text")
    assert os.read(reader, 9) == b"text" and pipe.is_fifo()
    os.close(reader)


@pytest.mark.parametrize("path", ["", "nowhere/x", "x" * 300, "a\0b", "circle", "."])
def test_where_nothing_can_be_written_is_said_before_the_work(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "circle").symlink_to("circle")
    for refuses in (files.check_writable, lambda path: files.write_whole(path, "text")):
        with pytest.raises(UserError, match="--out|cannot write"):
            refuses(path)
    assert [p.name for p in tmp_path.iterdir()] == ["circle"]
