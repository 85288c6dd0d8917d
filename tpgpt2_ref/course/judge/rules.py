"""Witness: vLLM's own choices, from its rules (`attention/vllm_rules`). This package's selector is never asked."""
from __future__ import annotations

from ...attention import vllm_rules
from ...attention.vllm_rules import fact, select_as

THEN, NOW = "0.11.0", "0.33"  # the vLLM that the diagrams describe, and the newest whose rules are here
GPUS = (70, 75, 80, 86, 87, 89, 90, 100, 120)  # compute capabilities from Volta to Blackwell
HALF = ("float16", "bfloat16")
MORE = ["flashinfer", "xformers"]  # packages that widen vLLM's choice


def in_both(found) -> dict:
    """{version: found(version)} for the diagrams' vLLM and the newest."""
    return {version: found(version) for version in (THEN, NOW)}


def asked_in_order(version: str) -> list[str]:
    """Whose word counts, first to last."""
    return [step["by"] for step in vllm_rules.rules()[version]["asked"]] + ["platform"]


def obeyed(version: str, names=("FLASH_ATTN", "XFORMERS", "FLEX_ATTENTION")) -> list[str]:
    """Those of the names that, in VLLM_ATTENTION_BACKEND, lead to the backend of that name."""
    answers = {name: select_as(version, env=name, installed=MORE) for name in names}
    return [name for name, answer in answers.items() if (answer["by"], answer["backend"]) == ("environment", name)]


def forced(version: str) -> list[str]:
    """The same, in the order of Diagram 5."""
    return obeyed(version, ("FLASH_ATTN", "FLEX_ATTENTION", "XFORMERS"))


def accepted(names: list[str], version: str = THEN) -> list[str]:
    """Those of the names that the variable takes without an error."""
    return [name for name in names if select_as(version, env=name, installed=MORE)["error"] is None]


def flash_heads(version: str) -> list[int]:
    """Head sizes up to 512 that FLASH_ATTN gets on Hopper."""
    return [size for size in range(1, 513) if select_as(version, head_size=size)["backend"] == "FLASH_ATTN"]


def flash_dtypes(version: str) -> list[str]:
    """Dtypes that FLASH_ATTN gets on Hopper."""
    return [dtype for dtype in (*HALF, "float32") if select_as(version, dtype=dtype)["backend"] == "FLASH_ATTN"]


def hopper_row(version: str) -> dict:
    """The first row of Diagram 5, as that vLLM has it."""
    return {"heads": flash_heads(version), "dtypes": flash_dtypes(version),
            "FlashAttention": select_as(version)["flash_version"]}


def flash_version_on(sm: int, version: str = THEN) -> int | None:
    return select_as(version, capability=sm)["flash_version"]


def who_gets_fa3() -> dict:
    """Compute capabilities where version 3 is the default, and where it can be asked for."""
    return {"by default": [sm for sm in GPUS if flash_version_on(sm) == 3],
            "on demand": [sm for sm in GPUS if 3 in vllm_rules.flash_can(THEN, sm)]}


def who_gets_fa2() -> dict:
    """{GPU: whether the diagram lists it} of those where version 2 is chosen."""
    return {f"SM {sm / 10:.1f}": sm in (80, 89) for sm in GPUS if flash_version_on(sm) == 2}


def backends_of_flash() -> dict:
    """How many backends FlashAttention 2 and 3 are, to vLLM's choice."""
    found = {select_as(THEN, capability=sm)["backend"] for sm in GPUS if flash_version_on(sm) in (2, 3)}
    return {"backends to choose between": len(found)}


def chosen(version: str = THEN, platform: str = "cuda", but: tuple[int, ...] = ()) -> list[str]:
    """Every backend that is chosen on that platform for some GPU, head size, dtype and cache, with every package."""
    gpus = [sm for sm in GPUS if sm not in but] if platform == "cuda" else [None]
    return sorted({answer["backend"] for sm in gpus for head in (16, 64, 80, 96, 256) for dtype in (*HALF, "float32")
                   for cache_dtype in ("auto", "fp8")
                   if (answer := select_as(version, platform=platform, capability=sm, head_size=head, dtype=dtype,
                                           cache_dtype=cache_dtype, installed=MORE))["backend"]})


def outcome_on_hopper() -> dict:
    """What a Hopper gets: the diagram's case, and the two for which it names no outcome."""
    cases = {"float16, heads of 64": {}, "float32": {"dtype": "float32"}, "heads of 80": {"head_size": 80}}
    return {case: select_as(THEN, **query)["backend"] for case, query in cases.items()}


def flex_takes() -> dict:
    """Whether FlexAttention, asked for by name, is built: for any head size, each dtype, an fp8 cache."""
    def takes(**query):
        answer = select_as(NOW, program="FLEX_ATTENTION", **query)
        return answer["backend"] == "FLEX_ATTENTION" and answer["error"] is None

    return {"every head size to 512": all(takes(head_size=size) for size in range(1, 513)),
            **{dtype: takes(dtype=dtype) for dtype in (*HALF, "float32", "float64")},
            "an fp8 cache": takes(cache_dtype="fp8")}


def names_with_dot(drawn=("._vllm_fa3_C.abi3.so", "._vllm_fa2_C.abi3.so")) -> dict:
    """Whether the wheel has files of the drawn names without their leading dot, and with it."""
    files = [path.rpartition("/")[2] for path in fact("flash_files")]
    return {"without the leading dot": all(name.lstrip(".") in files for name in drawn),
            "as written": all(name in files for name in drawn)}
