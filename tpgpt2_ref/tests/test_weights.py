"""Which files are read, and which head: what transformers loads is what is loaded, or it is refused by name."""
from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from tpgpt2_ref.engine import prompt_logits
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.parallel.world import World
from tpgpt2_ref.weights import find_checkpoint, load_model

from .conftest import on_ranks

SHAPE = dict(n_layer=2, n_head=2, n_embd=16, n_positions=32, vocab_size=60, bos_token_id=0, eos_token_id=59)
IDS = [1, 2, 3, 4]
HEADS = ("none", "same", "other", "alone", "neither")  # which of lm_head.weight and wte.weight are stored


def theirs(folder) -> np.ndarray:
    import transformers

    model = transformers.GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        return model.eval()(torch.tensor([IDS])).logits[0].numpy()


def ours(world, folders) -> list[np.ndarray]:
    return [prompt_logits(load_model(str(folder), world), IDS).numpy() for folder in folders]


@pytest.fixture(scope="module")
def heads(checkpoint, tmp_path_factory):
    """{(head, tied, prefix): a folder}, tied as config.json says (None: nothing), prefix "transformer." or none."""
    import safetensors.torch as st

    whole, _ = checkpoint(**SHAPE)
    tensors, config = st.load_file(whole / "model.safetensors"), json.loads((whole / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    body = {name.removeprefix("transformer."): t for name, t in tensors.items() if "wte" not in name}
    wte, made = tensors["transformer.wte.weight"], {}
    other = torch.randn(wte.shape, generator=torch.Generator().manual_seed(1)) * 0.3
    for head in HEADS:
        for tied in (True, False, None):
            for prefix in ("transformer.", ""):
                made[head, tied, prefix] = folder = tmp_path_factory.mktemp("head")
                stored = {f"{prefix}{name}": t for name, t in body.items()}
                if head in ("none", "same", "other"):
                    stored[f"{prefix}wte.weight"] = wte
                if head in ("same", "other", "alone"):
                    stored["lm_head.weight"] = other.clone() if head == "other" else wte.clone()
                st.save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
                (folder / "config.json").write_text(json.dumps(
                    config if tied is None else {**config, "tie_word_embeddings": tied}))
    return made


def test_the_head_is_that_of_transformers_or_refused(heads):
    loads = {key: folder for key, folder in heads.items() if key[0] != "neither" and (
        key[0] in ("same", "other") or key[1] is not False)}
    for (head, *_), folder in heads.items() - loads.items():
        missing = "wte.weight" if head in ("alone", "neither") else "lm_head.weight"
        with pytest.raises(UserError, match=f"tensor {missing} is missing"):
            find_checkpoint(str(folder))
    for (head, tied, _), folder in loads.items():
        assert find_checkpoint(str(folder)).config.tie_word_embeddings == (tied is not False and head != "other")
    for key, got in zip(loads, ours(World.single(), loads.values())):
        assert np.abs(got - theirs(heads[key])).max() < 1e-4, key


def test_a_head_of_its_own_is_split_over_the_ranks(heads):
    folders = [heads["other", False, "transformer."], heads["alone", True, ""]]
    for got in on_ranks(2, ours, folders):
        for logits, folder in zip(got, folders):
            assert np.abs(logits - theirs(folder)).max() < 1e-4


def test_strangers_beside_a_model_are_not_read(checkpoint, tmp_path):
    """A backup, a variant, another shard, an index that an earlier saving left: model.safetensors alone counts."""
    folder, model = checkpoint(**SHAPE)
    old, _ = checkpoint(**{**SHAPE, "n_layer": 3})
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for name in ("model_old", "model.fp16", "model-00001-of-00002", "adapter_model"):
        shutil.copy(old / "model.safetensors", tmp_path / f"{name}.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(
        {"weight_map": {"transformer.wte.weight": "model_old.safetensors"}}))
    assert np.abs(ours(World.single(), [tmp_path])[0] - theirs(tmp_path)).max() < 1e-4


def test_an_index_names_its_files(checkpoint, tmp_path):
    _, model = checkpoint(**SHAPE)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert np.abs(ours(World.single(), [tmp_path])[0] - theirs(tmp_path)).max() < 1e-4
    shutil.copy(shards[0], tmp_path / "model-00009-of-00009.safetensors")  # named by nobody
    assert {place.file for place in find_checkpoint(str(tmp_path)).places.values()} == set(shards)
    shards[0].unlink()
    with pytest.raises(UserError, match=f"{shards[0].name}', which is no file beside it"):
        find_checkpoint(str(tmp_path))


@pytest.mark.parametrize("change, says", [
    (lambda t: {**t, "wte.weight": t["transformer.wte.weight"].clone()}, "wte.weight is stored twice"),
    (lambda t: {**t, "transformer.ln_f.bias": t["transformer.ln_f.bias"].to(torch.int8)}, "ln_f.bias is I8"),
    (lambda t: {**t, "transformer.h.0.attn.bias": torch.zeros(1), "h.1.attn.masked_bias": torch.zeros(1)}, None),
])
def test_odd_tensors(checkpoint, tmp_path, change, says):
    import safetensors.torch as st

    folder, _ = checkpoint(**SHAPE)
    shutil.copy(folder / "config.json", tmp_path)
    st.save_file(change(st.load_file(folder / "model.safetensors")), tmp_path / "model.safetensors")
    if says is None:
        find_checkpoint(str(tmp_path))
        return
    with pytest.raises(UserError, match=says):
        find_checkpoint(str(tmp_path))


def test_a_configuration_of_a_billion_layers_is_refused_at_once(checkpoint, tmp_path):
    folder, _ = checkpoint(**SHAPE)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "n_layer": 10**9}))
    with pytest.raises(UserError, match=r"tensor h.2.ln_1.weight is missing"):
        find_checkpoint(str(tmp_path))


@pytest.mark.parametrize("name", ["gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh", "gelu_pytorch_tanh"])
def test_one_gelu_has_five_names(name):
    activations = pytest.importorskip("transformers.activations")
    x = torch.linspace(-9, 9, 999, dtype=torch.float64)
    torch.testing.assert_close(activations.ACT2FN[name](x), torch.nn.functional.gelu(x, approximate="tanh"),
                               atol=1e-9, rtol=0)
