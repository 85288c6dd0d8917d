"""What vLLM itself chooses, by version (Diagrams 1 and 5): an interpreter for the facts in `vllm_rules.toml`.

This package's own selector (`selector.py`) follows the diagram, so it can't judge it. These rules can: they are read
off vLLM's source, and each names its file and line. A query is a dict, so that it is JSON:

    platform     "cuda", "rocm" or "cpu"
    capability   90 for SM 9.0; None off CUDA
    head_size, dtype ("float16"), cache_dtype ("auto", "fp8", ...)
    block_size   tokens a page, None where the user says nothing
    installed    names of packages; None is what that vLLM's wheel requires
    program, env, per_kind   a backend's name, from the program, from the variable VLLM_ATTENTION_BACKEND, or for
                 full attention alone; None where nobody names one

A condition is a dict too, and holds if each of its parts does: `heads` and `block` are a list or {step, min, max},
`dtypes` and `cache` lists, `sm` a list of [least, most], `package` a name. A check is [reason, where, condition, ...]
and is met if any of its conditions holds. `late` checks run after the choice, when the backend is built.
Nothing here imports torch.
"""
from __future__ import annotations

import tomllib
from functools import cache
from pathlib import Path

from ..errors import UserError

DEFAULTS = {"platform": "cuda", "capability": 90, "head_size": 64, "dtype": "float16", "cache_dtype": "auto",
            "block_size": None, "installed": None, "program": None, "env": None, "per_kind": None}
CACHE_DTYPES = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2")


@cache
def rules() -> dict:
    """The whole of vllm_rules.toml: {version: its rules, "facts": {name: {version: {value, at}}}}."""
    return tomllib.loads(Path(__file__).with_suffix(".toml").read_text())


def versions() -> tuple[str, ...]:
    return tuple(name for name in rules() if name != "facts")


def fact(name: str, version: str = "0.11.0"):
    """The value of a single fact of that version's source."""
    return rules()["facts"][name][version]["value"]


def by_version(name: str) -> dict:
    """{version: value} of a fact."""
    return {v: entry["value"] for v, entry in rules()["facts"][name].items() if v != "what"}


def sums_by(version: str, nbytes: int, multicast: bool = False) -> str:
    """Who sums `nbytes` of two GPUs of one host that reach each other's memory."""
    return next(step["path"] for step in rules()["facts"]["all_reduce"][version]
                if nbytes < step.get("below", nbytes + 1) and (multicast or not step.get("multicast")))


def select_as(version: str, **query) -> dict:
    """The choice of that vLLM for a query's fields (the others at DEFAULTS).

    -> {version, backend, flash_version, by, at, rejected: {name: [reasons]}, lower: [names], notes, error}
    backend   its own name, or None if it refuses; then `error` says why. An `error` beside a backend is raised later,
              when the backend is built
    by        whose word it was: "force", "environment", "config", "config per kind" or "platform"
    rejected  what was asked before, and why not; `lower`: what could have run, but comes later
    Raises UserError for a field or a version that isn't known.
    """
    if version not in versions():
        raise UserError(f"no rules of vLLM {version!r}; there are those of {', '.join(versions())}")
    if unknown := query.keys() - DEFAULTS.keys():
        raise UserError(f"a query has no {min(unknown)!r}; it has {', '.join(DEFAULTS)}")
    source = rules()[version]
    query = DEFAULTS | query
    if query["platform"] not in source["platforms"]:
        raise UserError(f"unknown platform {query['platform']!r}; known: {', '.join(source['platforms'])}")
    if query["cache_dtype"] not in CACHE_DTYPES:
        raise UserError(f"unknown cache dtype {query['cache_dtype']!r}; known: {', '.join(CACHE_DTYPES)}")
    if query["installed"] is None:
        query["installed"] = source["requires"]
    platform = source["platforms"][query["platform"]]
    if query["platform"] != "cuda":
        query["capability"] = None
    notes = [gone["note"] for gone in source.get("gone", ()) if query[gone["key"]]]
    answer = {"version": version, "backend": None, "flash_version": None, "by": "platform", "at": None,
              "rejected": {}, "lower": [], "notes": notes, "error": None}

    if refused := unmet(platform["refuses"], query):
        return answer | {"error": refused[0], "at": platform["refuses"][0][1]}
    asked = next((step for step in source["asked"] if query[step["key"]]), None)
    if asked:
        name, named = query[asked["key"]], platform["named"]
        answer |= {"by": asked["by"], "at": named["at"]}
        if name not in source["names"]:
            return answer | {"error": source["unknown"].format(name=name), "at": asked["at"]}
        if name in named["take"]:
            reasons = why_not(source["backends"][name], query, named["checked"])
            if reasons:
                text = named.get("error", "{name}: {reasons}").format(name=name, reasons=", ".join(reasons))
                return answer | {"rejected": {name: reasons}, "error": text}
            return built(source, query, answer | {"backend": name})
        if named["otherwise"] != "ignored":
            return answer | {"error": named["otherwise"].format(name=name)}
        notes.append(f"{name} is ignored: the platform decides")
    for step in platform["order"]:
        name = step["backend"]
        if holds(step.get("when", {}), query):
            reasons = why_not(source["backends"][name], query, not step.get("unchecked"))
        elif "only" in step:
            reasons = [step["only"]]
        else:  # it stands at another place of the order there
            continue
        if answer["backend"]:
            if not reasons:
                answer["lower"].append(name)
        elif reasons:
            answer["rejected"].setdefault(name, reasons)
        else:
            answer |= {"backend": name, "by": "platform", "at": step["at"]}
            if source["stops_at_first"]:
                break
    if answer["backend"] is None:
        told = "; ".join(f"{name}: {', '.join(reasons)}" for name, reasons in answer["rejected"].items())
        return answer | {"error": f"No valid attention backend found. Reasons: {told}"}
    answer["rejected"].pop(answer["backend"], None)
    return built(source, query, answer)


def built(source: dict, query: dict, answer: dict) -> dict:
    """The answer with what only shows when the backend is built: FlashAttention's version, and late errors."""
    late = unmet(source["backends"][answer["backend"]]["late"], query)
    if answer["backend"] == "FLASH_ATTN":
        answer["flash_version"] = next((step["version"] for step in source["flash_version"]
                                        if holds(step["when"], query)), None)
    return answer | {"error": late[0] if late else None}


def why_not(backend: dict, query: dict, checked: bool) -> list[str]:
    """Why a backend is refused; a package that can't be imported hides every other reason."""
    package = backend.get("package")
    if package and package not in query["installed"]:
        return [f"ImportError: {package}"]
    return unmet(backend["checks"], query) if checked else []


def unmet(checks: list, query: dict) -> list[str]:
    """The reasons of the checks of which no condition holds."""
    return [reason.format(**query) for reason, _, *ways in checks if not any(holds(way, query) for way in ways)]


def holds(condition: dict, query: dict) -> bool:
    tests = {
        "heads": lambda spec: within(spec, query["head_size"]),
        "block": lambda spec: query["block_size"] is None or within(spec, query["block_size"]),
        "dtypes": lambda names: query["dtype"] in names,
        "cache": lambda names: query["cache_dtype"] in names,
        "sm": lambda spans: any(low <= (query["capability"] or -1) <= high for low, high in spans),
        "package": lambda name: name in query["installed"],
    }
    return all(tests[part](wanted) for part, wanted in condition.items())


def within(spec: list | dict, value: int) -> bool:
    if isinstance(spec, list):
        return value in spec
    return spec.get("min", 0) <= value <= spec.get("max", value) and value % spec.get("step", 1) == 0


def flash_can(version: str, capability: int) -> list[int]:
    """FlashAttention's versions that this vLLM can be told to run there."""
    query = DEFAULTS | {"capability": capability}
    return [step["version"] for step in rules()[version]["flash_can"] if holds(step["when"], query)]


def auto_dtype(version: str, capability: int) -> str:
    """What --dtype auto makes of a checkpoint in float32, such as GPT-2's."""
    query = DEFAULTS | {"capability": capability}
    return next((s["dtype"] for s in rules()[version]["default_dtype"] if holds(s["when"], query)), "float32")
