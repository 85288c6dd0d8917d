"""Whatever is asked of the command line, it answers or refuses in one line; and what it says arrives anywhere."""
from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tpgpt2_ref.commands.generate import show, texts, whole
from tpgpt2_ref.errors import UserError
from tpgpt2_ref.parallel.torchrun import Rank, the_only
from tpgpt2_ref.tokenizer import ByteTokenizer

from .conftest import ROOT, in_this_process

NUMBER = st.sampled_from(["0", "-0", "1", "-1", "2", "1e-50", "1e-40", "1e-9", "0.7", "1e30", "1e50", "nan", "inf",
                          "-inf", "x", "", " ", "1_0", "0x10", str(2**63), str(2**64 - 1), str(2**64), "9" * 5000])
TEXT = st.text(st.characters(exclude_characters="\0"), max_size=8).filter(lambda text: not text.startswith("-"))
IDS = st.lists(st.integers(0, 256), min_size=1, max_size=5).map(lambda ids: ",".join(map(str, ids)))
OPTIONS = {
    "--model": st.sampled_from(["tiny", "random:gpt2-test", "random:", "./tiny", "/", "/dev/null", "a b", "."]),
    "--prompt": TEXT, "--prompt-ids": IDS | TEXT, "--temperature": NUMBER, "--top-k": NUMBER, "--top-p": NUMBER,
    "--seed": NUMBER, "--tp": st.sampled_from(["0", "-1", "1", "x"]), "--plan": st.sampled_from(["as-drawn", "x"]),
    "--dtype": st.sampled_from(["float32", "float64"]), "--backend": st.sampled_from(["NAIVE", "FLASH_ATTN", ""]),
    "--sum": st.sampled_from(["auto", "push", "x"]), "--max-new-tokens": st.sampled_from(["0", "1", "3", "-5", "x"]),
}


def asked(optional):
    """Command lines with some of these options, odd or not; half of them with a prompt that is right."""
    return st.fixed_dictionaries({}, optional=optional).flatmap(lambda options: st.sampled_from([
        options, {"--prompt-ids": "1,2,3", **{k: v for k, v in options.items() if k != "--prompt"}}])).map(
        lambda options: [f"{name}={value}" for name, value in options.items()])


def answers_or_refuses(argv):
    status, out, err = in_this_process(argv)
    assert status in (0, 2), (argv, err)
    if status:
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1, (argv, out, err)
    return status, out


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(asked(OPTIONS))
def test_generate(argv):
    status, out = answers_or_refuses(["generate", "--device=cpu", "--json", "--max-new-tokens=2", *argv])
    if status == 0:
        json.loads(out)["text"][0].encode()  # whole characters, though the ids cut them


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(argv=asked({name: OPTIONS[name] for name in ("--model", "--prompt", "--prompt-ids", "--tp")}),
       out=st.sampled_from(["/dev/null", "/dev/full", ".", "/", "/proc/x", "x" * 300, "/dev/null/x", ""]))
def test_logits(argv, out):
    assert answers_or_refuses(["logits", "--device=cpu", f"--out={out}", *argv])[0] == 2 or out == "/dev/null"


JUNK = ["cost predict --model {} --op all_reduce --bytes 1 --world 2", "cost fit {} --out /dev/null",
        "generate --model {} --prompt a", "trace --device cpu --model {}", "bench decode --device cpu --model {}"]


@pytest.mark.parametrize("command", JUNK, ids=lambda command: command.split(" --")[0])
@pytest.mark.parametrize("junk", [b"", b"{", b"[]", b"null", b"[" * 100000, b"\xff\xfe", b'{"schema": 1, "rows": 3}'])
def test_junk_where_a_file_or_a_folder_belongs(tmp_path, command, junk):
    (tmp_path / "config.json").write_bytes(junk)
    for where in (tmp_path, tmp_path / "config.json"):
        assert answers_or_refuses(command.format(where).split())[0] == 2


def test_characters_are_whole_where_they_are_shown():
    """A character may begin in the prompt and end in what is generated."""
    tok = ByteTokenizer()
    ids = tok.encode("a🐍é")
    for cut in range(len(ids) + 1):
        assert whole("".join(texts(tok, [ids[:cut]]) + texts(tok, [ids[cut:]]))) == "a🐍é"
    for parts in (texts(tok, [ids[:3]], "replace"), texts(tok, [ids[3:]], "replace")):
        parts[0].encode()  # what JSON gets
    result = {"timings": {"load_s": 0, "decode_steps": 0}, "collectives": {}, "model": "m", "tp": 1, "world": "single",
              "plan": "shipped", "backend": "NAIVE", "dtype": "float32", "device": "cpu", "eager_because": None,
              "token_ids": [ids[3:]], "prompts": texts(tok, [ids[:3]]), "text": texts(tok, [ids[3:]])}
    assert show(result).splitlines()[0] == "a🐍é"


@pytest.mark.parametrize("env, ends", [
    ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, b"\\xe9t\\xe9"),
    ({"PYTHONIOENCODING": "ascii"}, b"\\xe9t\\xe9"), ({"LC_ALL": "C"}, "été".encode())])
def test_a_locale_without_utf8(env, ends):
    done = subprocess.run([sys.executable, "-c", "import sys; from tpgpt2_ref.cli import tell; from "
                           "tpgpt2_ref.commands.arguments import as_text; tell(as_text(sys.argv[1]))", "été"],
                          cwd=ROOT, env={**os.environ, **env}, capture_output=True, timeout=60)
    assert done.stdout.strip() == ends and done.stderr == b""


@pytest.mark.parametrize("argv, stdout, says", [
    (["select"], "pipe", ""), (["--help"], "pipe", ""), (["--help"], None, ""),
    (["--help"], "/dev/full", "error: cannot write the result")])
def test_a_reader_that_has_had_enough(argv, stdout, says):
    """A closed pipe is no failure, and a full disk is said in one line."""
    if stdout == "pipe":
        reader, out = os.pipe()
        os.close(reader)
    else:
        out = os.open(stdout or "/dev/null", os.O_WRONLY)
    command = [sys.executable, "-m", "tpgpt2_ref", *argv]
    if stdout is None:  # closed by the shell
        command = ["sh", "-c", '"$0" "$@" >&-', *command]
    done = subprocess.run(command, cwd=ROOT, stdout=out, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(out)
    assert done.returncode == (2 if says else 0) and done.stderr.count("\n") == bool(says) and says in done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the group's store tells, once it forms")
def test_a_second_process_of_a_rank_is_refused_before_it_imports_torch(monkeypatch):
    """Whoever holds the claim; another rank, another port, and the next process after the end are free."""
    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29876"}.items():
        monkeypatch.setenv(name, value)
    one, other = Rank(1, 2, 1, False, None), Rank(0, 2, 0, False, None)
    for _ in range(2):
        with the_only(one), the_only(other):
            code = "import sys\nfrom tpgpt2_ref.cli import main\nstatus = main(sys.argv[1:])\n" \
                   "sys.exit(9 if 'torch' in sys.modules else status)"
            refused = subprocess.run([sys.executable, "-c", code, "generate", "--model", "tiny", "--device", "cpu",
                                      "--prompt-ids", "1", "--tp", "2"], cwd=ROOT, capture_output=True, text=True)
            assert refused.returncode == 2 and refused.stderr.startswith("error: another process is rank 1 of the")
            monkeypatch.setenv("MASTER_PORT", "29877")
            with the_only(one), pytest.raises(UserError, match="rank 1 .* needs its own MASTER_PORT"), the_only(one):
                pass
            monkeypatch.setenv("MASTER_PORT", "29876")
