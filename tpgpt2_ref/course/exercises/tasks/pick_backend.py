'''A friend runs a model in fp32, with heads of 80, on a T4 (SM 7.5, CUDA 12.4). Every package is installed. Which
kernel does this book's selector choose? Hand over its name as text, as it stands in Diagram 5's table.

Walk down the diagram yourself, then ask `python -m tpgpt2_ref select` with the right options.
'''
from ....attention.matrix import MATRIX
from ....attention.platform import Platform
from ....attention.selector import get_attn_backend

HINTS = ("FlashAttention 2 wants tensor cores of SM 8.0, and 16 bits. The T4 has neither.",
         "Which kernel on the list is written in PyTorch itself, takes any head, and any of three dtypes?")
RIGHT = ("It is compiled from PyTorch code, for whatever head size and dtype it meets. That is why it comes late in "
         "the order, and why something is there to come.")


def start():
    ...


def chosen():
    machine = Platform("cuda", (7, 5), (12, 4), frozenset(p for row in MATRIX.values() for p in row.packages))
    return get_attn_backend(12, 80, "float32", 16, platform=machine)


def solution():
    return chosen().backend


def flash_attention():
    return "FLASH_ATTN_2"


def triton():
    return "TRITON_ATTN"


def value(answer) -> str | None:
    choice = chosen()
    if not isinstance(answer, str):
        return "the answer is a name, as text."
    name = answer.strip().upper()
    if name == choice.backend:
        return None
    if name in choice.rejected:
        return f"{name} is refused there: {'; '.join(choice.rejected[name])}."
    return f"there is no kernel {answer!r}. The names are {', '.join(MATRIX)}."


MISTAKES = {flash_attention: "FLASH_ATTN_2 is refused there: head size 80",
            triton: "TRITON_ATTN is refused there: compute capability 7.5"}
