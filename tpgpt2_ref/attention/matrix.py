"""Diagram 5: which attention kernel takes what, as data. The selector, the chapter's table and the tests read this.

`MATRIX` is what each backend takes, in the order in which a CUDA machine is asked; `ORDER` is who is asked where;
`DIAGRAM_5` is the diagram to the letter, so that a test can hold the one against the other.
"""
from __future__ import annotations

from dataclasses import dataclass

from ..config import DTYPES
from .platform import KINDS, Platform, dotted

HALF = ("float16", "bfloat16")
FLASH_HEADS = (32, 64, 96, 128, 160, 192, 224, 256)

PACKAGES = {  # name: how to install it. "torch" is always there
    "triton": "comes with PyTorch for CUDA and ROCm; elsewhere pip install triton",
    "flash-attn": "pip install flash-attn --no-build-isolation",
    "flash-attn-3": "build it from the folder hopper of github.com/Dao-AILab/flash-attention",
    "flash-attn-4": "pip install flash-attn-4",
    "vllm": "pip install vllm",
    "xformers": "pip install xformers",
    "flashinfer": "pip install flashinfer-python",
}


@dataclass(frozen=True)
class Support:
    """One row: a backend, and what it takes. A field that is None takes everything.

    qualname      where its class is, "module:class"; resolved when it is chosen, not before. "" is a name that vLLM
                  has and this package has not: its conditions are said, and it is never chosen
    packages      any one of them will do
    capabilities  compute capability of an NVIDIA GPU, least and greatest
    bfloat16_from  the least one for bfloat16, if it is another
    block_step    a page must hold a multiple of so many tokens
    """

    name: str
    qualname: str
    packages: tuple[str, ...]
    platforms: tuple[str, ...]
    head_sizes: tuple[int, ...] | range | None = None
    dtypes: tuple[str, ...] = DTYPES
    capabilities: tuple[tuple[int, int], tuple[int, int]] | None = None
    cuda_version: tuple[int, int] | None = None
    block_step: int = 1
    cache_dtypes: tuple[str, ...] = ("auto",)
    note: str = ""
    bfloat16_from: tuple[int, int] | None = None

    @property
    def implemented(self) -> bool:
        return bool(self.qualname)

    @property
    def sm(self) -> str:
        """Its compute capabilities in words: "9.0", "8.0 to 9.0", "8.0 and newer"; empty where any will do."""
        if self.capabilities is None:
            return ""
        least, most = self.capabilities
        return dotted(least) + ("" if most == least else " and newer" if most == ANY_SM else f" to {dotted(most)}")

    def reasons(self, platform: Platform, head_size: int, dtype: str, block_size: int, cache_dtype: str) -> list[str]:
        """Why it can't run there; empty if it can. Packages are not looked at: that takes an import."""
        if platform.kind not in self.platforms:
            return [f"runs on {' and '.join(self.platforms)}, this is {platform.kind}"]
        found = []
        if self.head_sizes is not None and head_size not in self.head_sizes:
            found.append(f"head size {head_size}: takes {listed(self.head_sizes)}")
        if dtype not in self.dtypes:
            found.append(f"dtype {dtype}: takes {' and '.join(self.dtypes)}")
        if platform.kind == "cuda" and self.capabilities is not None:
            least, most = self.capabilities
            if not least <= platform.capability <= most:
                found.append(f"compute capability {dotted(platform.capability)}: needs SM {self.sm}")
        if (platform.kind == "cuda" and dtype == "bfloat16" and self.bfloat16_from
                and platform.capability < self.bfloat16_from):
            found.append(f"bfloat16 on compute capability {dotted(platform.capability)}: needs SM "
                         f"{dotted(self.bfloat16_from)}")
        if platform.kind == "cuda" and self.cuda_version and platform.cuda_version < self.cuda_version:
            found.append(f"CUDA {dotted(platform.cuda_version)}: needs {dotted(self.cuda_version)} or newer")
        if block_size % self.block_step:
            found.append(f"pages of {block_size} tokens: takes multiples of {self.block_step}")
        if cache_dtype not in self.cache_dtypes:
            found.append(f"KV cache in {cache_dtype}: takes {' and '.join(self.cache_dtypes)}")
        if not self.implemented:
            found.append("this package has no implementation of it")
        return found

    def missing(self, installed: frozenset[str]) -> list[str]:
        """Why an imagined machine with these packages can't run it; empty if it can."""
        if "torch" in self.packages or installed & set(self.packages):
            return []
        return [f"package {' or '.join(self.packages)} is not installed: {self.install}"]

    @property
    def install(self) -> str:
        return "; or ".join(PACKAGES[p] for p in self.packages if p in PACKAGES)


def listed(sizes: tuple[int, ...] | range) -> str:
    if isinstance(sizes, range):
        return f"multiples of {sizes.step} from {sizes.start} to {sizes[-1]}"
    return ", ".join(map(str, sizes))


HERE = "tpgpt2_ref.attention.backends"
ANY_SM = (99, 9)

MATRIX = {row.name: row for row in (
    Support("FLASH_ATTN_3", f"{HERE}.flash_attn_3:FlashAttention3", ("flash-attn-3", "vllm"), ("cuda",), FLASH_HEADS,
            HALF, ((9, 0), (9, 0)), (12, 3), 16, ("auto", "fp8_e4m3"),
            "reads pages of 16 itself; its schedule is computed once a step"),
    Support("FLASH_ATTN_4", f"{HERE}.flash_attn_4:FlashAttention4", ("flash-attn-4",), ("cuda",),
            (32, 64, 96, 128), HALF, ((9, 0), (11, 9)), (12, 8), 16,
            note="CuTe DSL, compiled at the first call; not in the diagrams"),
    Support("FLASH_ATTN_2", f"{HERE}.flash_attn_2:FlashAttention2", ("vllm", "flash-attn", "torch"), ("cuda",),
            FLASH_HEADS, HALF, ((8, 0), ANY_SM), block_step=16,
            note="vLLM's build reads pages of 16; the others gather the pages first"),
    Support("FLEX_ATTENTION", f"{HERE}.flex_attention:FlexAttention", ("torch",), ("cuda", "rocm", "cpu"),
            block_step=16, bfloat16_from=(8, 0),
            note="PyTorch compiles a Triton kernel for the block table given as a mask"),
    Support("XFORMERS", f"{HERE}.xformers:XFormers", ("xformers",), ("cuda", "rocm"), range(32, 257, 8), HALF,
            ((8, 0), (9, 0)), block_step=16,
            note="reads pages in decode at head sizes 32, 64, 128 and 256; gathers them otherwise"),
    Support("TRITON_ATTN", f"{HERE}.triton_attn:TritonAttention", ("triton",), ("cuda", "rocm"), range(32, 257, 8),
            DTYPES, ((8, 0), ANY_SM), cache_dtypes=("auto", "fp8_e4m3"),
            note="this package's own kernel, see triton_kernel.py"),
    Support("SDPA", f"{HERE}.sdpa:SDPA", ("torch",), ("cuda", "rocm", "cpu"), cache_dtypes=("auto", "fp8_e4m3"),
            note="PyTorch's scaled_dot_product_attention, one sequence at a time"),
    Support("NAIVE", f"{HERE}.naive:NaiveBackend", ("torch",), ("cuda", "rocm", "cpu"),
            cache_dtypes=("auto", "fp8_e4m3"), note="softmax(q k^T / sqrt(d)) v as the textbook writes it"),
    Support("FLASHINFER", "", ("flashinfer",), ("cuda",), (64, 128, 256, 512), HALF, ((8, 0), (12, 1)), None, 16,
            ("auto", "fp8_e4m3"), "what vLLM takes on SM 10; its conditions are those of vLLM 0.33"),
)}

CACHE_DTYPES = tuple(dict.fromkeys(d for row in MATRIX.values() for d in row.cache_dtypes))
FLASH_ATTN = tuple(name for name in MATRIX if name.startswith("FLASH_ATTN_"))  # what FLASH_ATTN stands for, best first

FIRST = {"cuda": (), "rocm": ("TRITON_ATTN", "XFORMERS"), "cpu": ("NAIVE", "SDPA")}  # before the others, in row order
ORDER = {  # Diagram 1's decision tree and Diagram 5's rows: who is asked, in turn
    kind: (*FIRST[kind], *(name for name, row in MATRIX.items()
                           if kind in row.platforms and row.implemented and name not in FIRST[kind])) for kind in KINDS}

ALIASES = {"TRITON": "TRITON_ATTN"}  # the diagrams' spelling of vLLM's name


@dataclass(frozen=True)
class DiagramRow:
    """A row of Diagram 5 as drawn. None is its "Any"; `backends` are the names that its last column stands for."""

    head_sizes: tuple[int, ...] | None
    dtypes: tuple[str, ...] | None
    gpu: str
    backend: str
    platforms: tuple[Platform, ...]
    backends: tuple[str, ...]


def _cuda(*capabilities: tuple[int, int]) -> tuple[Platform, ...]:
    return tuple(Platform("cuda", c, (12, 4), frozenset(PACKAGES)) for c in capabilities)


DIAGRAM_5 = (
    DiagramRow(FLASH_HEADS, HALF, "NVIDIA Hopper (SM 90)", "FlashAttn V3", _cuda((9, 0)), ("FLASH_ATTN_3",)),
    DiagramRow(FLASH_HEADS, HALF, "NVIDIA Pre-Hopper (SM 80, 89)", "FlashAttn V2", _cuda((8, 0), (8, 9)),
               ("FLASH_ATTN_2",)),
    DiagramRow(None, None, "NVIDIA (fallback)", "FlexAttention", _cuda((8, 0), (8, 9), (9, 0)), ("FLEX_ATTENTION",)),
    DiagramRow((32, 64, 128, 160, 192, 224, 256), HALF, "AMD (ROCm)", "Triton/xFormers",
               (Platform("rocm", installed=frozenset(PACKAGES)),), ("TRITON_ATTN", "XFORMERS")),
    DiagramRow(None, None, "CPU (inference)", "CPU Fallback (naive attn)",
               (Platform("cpu", installed=frozenset(PACKAGES)),), ("NAIVE",)),
)
