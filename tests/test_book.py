"""The book as a whole, at rest: links, contents, stored outputs, and what README and CI promise."""
import re
import subprocess
from pathlib import Path

import nbformat
import pytest
import yaml

from tpgpt2_ref.course import judge
from tpgpt2_ref.recorded import results

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
NOTEBOOKS = sorted(BOOK.glob("*.ipynb"))
FIGURES = ("image/svg+xml", "image/png", "text/html")


def contents(node=None) -> list[str]:
    """The table of contents, in order."""
    node = yaml.safe_load((BOOK / "_toc.yml").read_text()) if node is None else node
    if isinstance(node, list):
        return [file for child in node for file in contents(child)]
    if not isinstance(node, dict):
        return []
    return [file for key, value in node.items() for file in ([value] if key in ("file", "root") else contents(value))]


def tracked() -> list[Path]:
    out = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if out.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in out.stdout.split("\0") if name]


def test_a_clone_without_links_builds_the_book():
    """Windows checks a link out as a text file that holds a path: only the top level has two, which no build reads."""
    tracked()  # skips outside of git
    listed = subprocess.run(["git", "ls-files", "-s"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    links = {line.split("\t")[1] for line in listed if line.startswith("120000")}
    assert links == {"_config.yml", "_toc.yml"}
    for name in links:
        assert (ROOT / name).is_file() and isinstance(yaml.safe_load((BOOK / name).read_text()), dict)


def test_every_page_of_the_contents_is_there_and_every_page_is_in_the_contents():
    files = contents()
    assert len(files) == len(set(files))
    pages = {str(p.relative_to(BOOK).with_suffix("")) for kind in ("*.md", "*.ipynb") for p in BOOK.rglob(kind)
             if not {"_build", "results", ".ipynb_checkpoints"} & set(p.relative_to(BOOK).parts)}
    assert set(files) == pages


def test_every_folder_of_the_package_has_a_code_page():
    rooms = {room for page in (BOOK / "code").glob("*.md")
             for room in re.findall(r"^```\{code-room\} (\S+)", page.read_text(), re.M)}
    folders = {str(p.parent.relative_to(ROOT / "tpgpt2_ref")) for kind in ("*.py", "*.cu")
               for p in (ROOT / "tpgpt2_ref").rglob(kind) if p.read_text().strip() and "tests" not in p.parts}
    assert folders == rooms


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_chapter_carries_its_outputs(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    outputs = [output for cell in code for output in cell.outputs]
    assert book.metadata.kernelspec.name == "python3"
    assert all(cell.execution_count for cell in code), "a cell was not run"
    assert not any(output.output_type == "error" for output in outputs)
    assert [output.text for output in outputs if output.get("name") == "stderr"] == []  # a page shows no warning
    assert any(set(FIGURES) & set(output.get("data", {})) for output in outputs), "no figure or table"
    assert path.stat().st_size < 3_000_000


def test_no_machine_path_in_a_tracked_file():
    # spelled in pieces, so that this file doesn't match itself
    local = re.compile("/(" + "|".join(["ho" + "me", "ro" + "ot", "wo" + "rk", "Use" + "rs", "tm" + "p"]) + r")/\w")
    found = {f"{path.relative_to(ROOT)}: {m[0]}" for path in tracked()
             if path.is_file() and not path.is_symlink() and path.suffix not in (".safetensors", ".woff", ".png", ".js")
             for m in local.finditer(path.read_text())}
    assert not found


def test_readme_names_what_ci_runs():
    readme, ci = (ROOT / "README.md").read_text(), (ROOT / ".ci" / "run").read_text()
    install, build = "pip install -r requirements.txt", "jupyter-book build book/"
    assert f"python -m {install} && {build}\n" in readme and "\npytest tpgpt2_ref\n" in readme
    assert "-r requirements.txt" in ci and build in ci and "pytest tests tpgpt2_ref" in ci


def test_the_files_that_readme_links_to_exist():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)\)", re.sub(r"`[^`]*`", "", page.read_text())):
            assert (ROOT / target).exists(), f"{page.name}: {target}"


def test_the_numbers_in_readme_are_the_recorded_ones():
    two, four, one = (BOOK / "results" / f"{n}x-nvidia-h200" for n in (2, 4, 1))
    decode, prefill = (results.load(two / f"{name}.json") for name in ("decode", "prefill"))
    attention = results.load(one / "attention.json")
    step = {(r["engine"], r["model"], r["tp"], r["sum"], r["batch"]): f"{r['us_per_step_median']:,.0f}"
            for r in (*decode.rows, *results.load(four / "decode.json").rows)
            if r["rung"] in ("+pdl", "generate") and r["prompt_len"] == 128}

    clusters = {(r["model"], r["tp"], r["batch"]): f"{r['us_per_step_median']:,.0f}"
                for r in results.load(two / "decode_clusters.json").rows if r["rung"] == "+clusters"}

    def small(tp, way, engine="tpgpt2"):  # but of one sequence, which cluster kernels decode
        found = [step[engine, "gpt2", tp, way, batch] for batch in (1, 8, 64)]
        return [clusters.get(("gpt2", tp, 1), found[0]), *found[1:]] if engine == "tpgpt2" and way != "nccl" else found

    alone, push, nccl, push4, nccl4 = (small(*how) for how in ((1, "none"), (2, "push"), (2, "nccl"), (4, "push"),
                                                               (4, "nccl")))
    peer, xl = small(1, "none", "transformers"), [step["tpgpt2", "gpt2-xl", n, way, 1]
                                                  for n, way in ((1, "none"), (2, "push"), (4, "push"))]
    prompts = {r["tp"]: (f"{r['wall_us_median'] / 1e3:.2f}", f"{r['gpu_us_median'] / 1e3:.2f}") for r in prefill.rows
               if (r["model"], r["rung"], r["batch"], r["prompt_len"]) == ("gpt2", "fused", 8, 1000)
               and (r["tp"] == 1 or r["sum"] != "none")}
    sum_of = {way: f"{us:.1f}" for way, us in judge.one_token().items()}  # the row that the pages show too
    shares = judge.share_rows()
    by = {way: sorted(round(100 * r["communication_share"]) for r in shares if r["sum"] == way)
          for way in ("push", "nccl")}
    kernel = {r["backend"]: f"{r['us_median']:.1f}" for r in attention.rows
              if (r["phase"], r["batch"], r["seq_len"], r["head_size"], r["dtype"])
              == ("decode", 8, 1024, 64, "bfloat16")}
    assert (len(by["push"]), len(by["nccl"])) == (23, 4)
    for gpus, us in zip((2, 4), xl[1:]):  # README's rows are those of the figures
        [row] = [r for r in judge.speedups("decode", "+pdl", gpus)
                 if (r["model"], r["batch"], r["prompt_len"], r["sum"]) == ("gpt2-xl", 1, 128, "push")]
        assert (f"{row['one_us']:,.0f}", f"{row['many_us']:,.0f}") == (xl[0], us)
    xl[0] = clusters["gpt2-xl", 1, 1]
    for said in (
        f"one GPU | {alone[0]} us at batch 1, {alone[1]} at 8, {alone[2]} at 64 |",
        f"on two GPUs | {push[0]}, {push[1]} and {push[2]} us; over NCCL {nccl[0]}, {nccl[1]} and {nccl[2]} |",
        f"on four | {push4[0]}, {push4[1]} and {push4[2]} us; over NCCL {nccl4[0]}, {nccl4[1]} and {nccl4[2]} |",
        f"transformers, one GPU | {peer[0]}, {peer[1]} and {peer[2]} us |",
        f"{xl[0]} us on one GPU, {xl[1]} on two, {xl[2]} on four |",
        f"{prompts[1][0]} ms on one GPU, of which it works {prompts[1][1]}; "
        f"{prompts[2][0]} and {prompts[2][1]} on two |",
        f"{sum_of['push']} us by our `push`, {sum_of['one_shot']} by PyTorch's one-shot, {sum_of['nccl']} by NCCL",
        f"{by['push'][0]} to {by['push'][-1]} % of 23 decode steps and prefills by `push`, {by['nccl'][0]} to "
        f"{by['nccl'][-1]} % of four by NCCL",
        f"{kernel['TRITON_ATTN']} us by our Triton kernel, {kernel['FLASH_ATTN_3']} by FlashAttention-3, "
        f"{kernel['FLASH_ATTN_4']} by FlashAttention-4",
    ):
        assert said in (ROOT / "README.md").read_text(), said
