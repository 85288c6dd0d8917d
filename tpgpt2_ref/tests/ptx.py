"""Runs compiled Triton kernels without a GPU: the threads of all ranks, one instruction after the other, in any order.

    memory = Memory()                            one address space, as GPUs with peer access have it
    kernel = Kernel(compile_ptx(...))            just the instructions that push's kernels are made of
    run([[Launch(kernel, arguments, grid)], ...], memory, seed)     a list of launches for each rank, one after another

A thread may be overtaken after every access to memory that peers see, also between the four words of one 16-byte
access. Barriers and shuffles wait for their warp or program. Slow (a million instructions a second or less) and exact:
what it can't show is a memory model weaker than this order, and time.
"""
from __future__ import annotations

import random
import re
import struct
from dataclasses import dataclass, field

import numpy as np


class Memory:
    """Bytes by address. Nothing lies at 0."""

    def __init__(self):
        self.bytes, self.clock = bytearray(4096), 0

    def put(self, array: np.ndarray) -> int:
        """Copy an array in; -> its address, a multiple of 512, as torch allocates."""
        at = len(self.bytes)
        self.bytes += array.tobytes() + bytes(-array.nbytes % 512)
        return at

    def get(self, at: int, dtype, count: int) -> np.ndarray:
        return np.frombuffer(bytes(self.bytes[at : at + count * np.dtype(dtype).itemsize]), dtype)


@dataclass
class Instruction:
    op: str
    operands: list[str]
    guard: str | None  # "p" or "!p"
    scopes: tuple[int, ...]  # blocks in braces around it: labels are local to them


class Kernel:
    def __init__(self, ptx: str):
        self.code, self.labels, scopes, count = [], {}, [0], 0
        self.threads = int(re.search(r"\.reqntid (\d+)", ptx)[1])
        body = re.sub(r"(?m)//.*|^\s*\.loc.*", "", ptx)
        for statement in body[body.index("\n{") + 2 : body.index("\n}")].split(";"):
            while m := re.match(r"\s*(?:([\w$]+):|[{}])", statement):
                if m[0].strip() == "{":
                    count += 1
                    scopes.append(count)
                elif m[0].strip() == "}":
                    scopes.pop()
                else:
                    self.labels[scopes[-1], m[1]] = len(self.code)
                statement = statement[m.end():]
            if m := re.match(r"\s*(?:@(!?[%\w]+)\s+)?([a-z][\w.:]*)\s*(.*)", statement, re.S):
                operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^\s,{}\[\]]+", m[3])
                self.code.append(Instruction(m[2], operands, m[1], tuple(reversed(scopes))))


@dataclass
class Launch:
    kernel: Kernel
    arguments: list[int | float]
    grid: int = 1


@dataclass
class Program:
    launch: Launch
    number: int
    memory: Memory
    shared: bytearray = field(default_factory=lambda: bytearray(4096))


def run(ranks: list[list[Launch]], memory: Memory, seed: int = 0, steps: int = 1_000_000):
    """Run each rank's launches in order, the ranks side by side, always a thread drawn at random."""
    draw = random.Random(seed)
    waiting = [list(launches) for launches in ranks]
    alive = [dict() for _ in ranks]  # by rank: (program, thread) -> generator
    held = [dict() for _ in ranks]  # those that wait: -> ("bar",) or ("shfl", value, lanes)
    for _ in range(steps):
        for rank, launches in enumerate(waiting):
            if not alive[rank] and not held[rank] and launches:
                launch = launches.pop(0)
                for p in range(launch.grid):
                    program = Program(launch, p, memory)
                    alive[rank] |= {(p, t): thread(program, t) for t in range(launch.kernel.threads)}
        ready = [rank for rank in range(len(ranks)) if alive[rank]]
        if not ready:
            return
        rank = draw.choice(ready)
        who = draw.choice(list(alive[rank]))
        memory.clock += 1
        try:
            event = next(alive[rank][who])
        except StopIteration:
            del alive[rank][who]
            continue
        if event:
            held[rank][who] = event, alive[rank].pop(who)
            release(who, held[rank], alive[rank])
    raise AssertionError(f"still running after {steps} steps: ranks {ready}")


def release(who, held, alive):
    """Let a barrier's program, or a shuffle's warp, go on when its last thread has come."""
    kind = held[who][0][0]
    same = [w for w in (*held, *alive) if w[0] == who[0] and (kind == "bar" or w[1] // 32 == who[1] // 32)]
    if all(w in held and held[w][0][0] == kind for w in same):
        values = {w[1] % 32: held[w][0][1] for w in same if kind == "shfl"}
        for w in same:
            (_, *payload), generator = held.pop(w)
            alive[w] = generator
            if kind == "shfl":
                generator.send(values[(w[1] % 32) ^ payload[1]])


def thread(program: Program, tid: int):
    """A generator: yields None where others may overtake, ("bar",) or ("shfl", bits, lanes) to wait."""
    code, labels, memory = program.launch.kernel.code, program.launch.kernel.labels, program.memory
    r, pc = {"%tid.x": tid, "%ctaid.x": program.number, "%nctaid.x": program.launch.grid, "global_smem": 0}, 0

    def value(o: str) -> int:
        if o in r:
            return r[o]
        if o == "%globaltimer":
            return memory.clock
        return int(o[2:], 16) if o.startswith("0f") else int(o.rstrip("U"), 0)

    def address(o: str) -> int:
        base, _, offset = o[1:-1].partition("+")
        return value(base.strip()) + int(offset or 0)

    while True:
        i, pc = code[pc], pc + 1
        if i.guard and bool(r[i.guard.lstrip("!")]) == i.guard.startswith("!"):
            continue
        op, kind, to, *rest = *i.op.split(".")[:1], i.op.split(".")[-1], *(i.operands or [""])
        size = int(kind[1:]) // 8 if kind[1:].isdigit() else 4
        if op == "ret":
            return
        elif op == "bra":
            pc = next(labels[s, to] for s in i.scopes if (s, to) in labels)
            yield None
        elif op == "bar":
            yield ("bar",)
        elif op == "shfl":
            r[to] = yield ("shfl", value(rest[0]), value(rest[1]))
            yield None  # `send` has brought us here
        elif op == "ld" and "param" in i.op:
            v = program.launch.arguments[int(re.search(r"param_(\d+)", rest[0])[1])]
            r[to] = bits(v) if isinstance(v, float) else v
        elif op in ("ld", "st"):
            names, at = ((to, rest[0]) if op == "ld" else (rest[0], to))
            space, at = (program.shared if "shared" in i.op else memory.bytes), address(at)
            for n, name in enumerate(names.strip("{}").split(",")):
                where = slice(at + n * size, at + (n + 1) * size)
                if op == "ld":
                    r[name.strip()] = int.from_bytes(space[where], "little")
                else:
                    space[where] = (value(name.strip()) & (1 << 8 * size) - 1).to_bytes(size, "little")
                if "relaxed" in i.op:
                    yield None
        elif op == "mov" and to.startswith("{"):
            low, high = (t.strip() for t in to.strip("{}").split(","))
            r[low], r[high] = value(rest[0]) & 0xFFFF, value(rest[0]) >> 16
        elif op == "mov" and rest[0].startswith("{"):
            low, high = (value(t.strip()) for t in rest[0].strip("{}").split(","))
            r[to] = low | high << 16
        elif op != "griddepcontrol":
            r[to] = compute(i.op, kind, 8 * size, [value(o) for o in rest])


def compute(op: str, kind: str, width: int, v: list[int]) -> int:
    """One arithmetic instruction on bit patterns."""
    name, mask = op.split(".")[0], (1 << width) - 1
    if name == "cvt":
        return convert(op, v)
    if name == "setp":
        a, b = (signed(x, width) if kind[0] == "s" else x & mask for x in v[:2])
        return {"lt": a < b, "ge": a >= b, "eq": a == b, "ne": a != b, "gt": a > b, "le": a <= b}[op.split(".")[1]]
    if name == "selp":
        return v[0] if v[2] else v[1]
    if kind.endswith("x2"):
        low, high = (compute(op, kind[:-2], 16, [x >> shift & 0xFFFF for x in v]) for shift in (0, 16))
        return low | high << 16
    if kind in ("f32", "f16", "bf16") and name != "mov":
        load, store = {"f32": (real, bits), "f16": (half, to_half), "bf16": (lambda x: real(x << 16), to_bf16)}[kind]
        x = [np.float64(load(a)) for a in v]
        with np.errstate(all="ignore"):
            return store({"add": lambda: x[0] + x[1], "sub": lambda: x[0] - x[1], "mul": lambda: x[0] * x[1],
                          "fma": lambda: x[0] * x[1] + x[2], "div": lambda: x[0] / x[1], "neg": lambda: -x[0],
                          "rsqrt": lambda: x[0] ** -0.5}[name]())
    if ".wide" in op:
        a, b = (signed(x, width) if kind[0] == "s" else x & mask for x in v[:2])
        return (a * b + (v[2] if name == "mad" else 0)) & (1 << 2 * width) - 1
    if name == "prmt":
        both = (v[0] | v[1] << 32).to_bytes(8, "little")
        return int.from_bytes(bytes(both[v[2] >> 4 * n & 7] for n in range(4)), "little")
    if kind == "pred":
        return {"and": all(v), "or": any(v), "mov": v[0], "not": not v[0]}[name]
    return {"mov": lambda: v[0], "add": lambda: v[0] + v[1], "sub": lambda: v[0] - v[1], "mul": lambda: v[0] * v[1],
            "mad": lambda: v[0] * v[1] + v[2], "shl": lambda: v[0] << v[1], "and": lambda: v[0] & v[1],
            "or": lambda: v[0] | v[1], "xor": lambda: v[0] ^ v[1], "min": lambda: min(v), "max": lambda: max(v),
            "not": lambda: ~v[0], "neg": lambda: -v[0],
            "shr": lambda: (signed(v[0], width) if kind[0] == "s" else v[0]) >> v[1]}[name]() & mask


def convert(op: str, v: list[int]) -> int:
    *_, to, source = op.split(".")
    if to.endswith("x2"):
        one = to_half if to == "f16x2" else to_bf16
        return one(real(v[0])) << 16 | one(real(v[1]))
    if to == "f32":
        return {"f16": lambda: bits(half(v[0])), "bf16": lambda: v[0] << 16,
                "s32": lambda: bits(signed(v[0], 32))}[source]()
    if source == "f32":
        return (to_half if to == "f16" else to_bf16)(real(v[0]))
    x = signed(v[0], int(source[1:])) if source[0] == "s" else v[0] & (1 << int(source[1:])) - 1
    return x & (1 << int(to[1:])) - 1


def signed(x: int, width: int) -> int:
    x &= (1 << width) - 1
    return x - (1 << width) if x >> width - 1 else x


def real(x: int) -> float:
    return struct.unpack("<f", struct.pack("<I", x & 0xFFFFFFFF))[0]


def bits(x: float) -> int:
    with np.errstate(all="ignore"):
        return int(np.float32(x).view(np.uint32))


def half(x: int) -> float:
    return float(np.uint16(x & 0xFFFF).view(np.float16))


def to_half(x: float) -> int:
    with np.errstate(all="ignore"):
        return int(np.float16(np.float32(x)).view(np.uint16))


def to_bf16(x: float) -> int:
    b = bits(x)
    return 0x7FFF if x != x else (b + 0x7FFF + (b >> 16 & 1)) >> 16
