"""The command line: `python -m tpgpt2_ref COMMAND`. One file a command in `commands/`.

With --json a command prints one JSON object on stdout and nothing else there. Exit status: 0, 2 for a user's
mistake, 1 for a failure. A command that needs N ranks starts them itself, or joins them under torchrun.
"""
from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import contextmanager
from importlib import import_module

from .errors import RankError, UserError
from .parallel.launch import check_size, gpu_count, launch, open_gpu
from .parallel.times import mark
from .parallel.torchrun import the_only, torchrun_env

COMMANDS = ("generate", "logits", "doctor", "select", "claims", "trace", "bench", "cost", "exercises")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    try:
        return run(parser(argv).parse_args(argv), argv)
    except UserError as e:
        status, words = 2, str(e)
    except RankError as e:
        status, words = 1, str(e)
    except KeyboardInterrupt:
        return 130
    if words:
        print("error:", " ".join(words.splitlines()), file=sys.stderr)
    return status


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line, and help is written as results are."""

    def error(self, message):
        raise UserError(f"{message} (`{self.prog} --help` says more)")

    def print_help(self, file=None):
        tell(self.format_help().rstrip())


def parser(argv: list[str]) -> argparse.ArgumentParser:
    """The parser of the command asked for; of all of them if none is, to list them."""
    top = Parser(prog="python -m tpgpt2_ref", description="Tensor-parallel GPT-2 whose diagrams run.")
    sub = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in argv[:1] if argv[:1] and argv[0] in COMMANDS else COMMANDS:
        module = import_module(f".commands.{name}", __package__)
        p = sub.add_parser(name, help=module.HELP, description=module.__doc__,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
        module.add_arguments(p)
        _add_json(p)
        p.set_defaults(module=module)
    return top


def _add_json(p: argparse.ArgumentParser) -> None:
    """--json on the command, or on each of its subcommands."""
    nested = [a for a in p._actions if isinstance(a, argparse._SubParsersAction)]
    for child in nested[0].choices.values() if nested else [p]:
        child.add_argument("--json", action="store_true", help="print one JSON object on stdout, logs on stderr")


def run(args, argv: list[str]) -> int:
    """Carry out one parsed command, in this process or on as many ranks as it needs."""
    command = args.module
    mark("command line read")
    group = torchrun_env()
    size = command.ranks(args) if hasattr(command, "ranks") else None
    if size is not None:
        if args.device is None:
            args.device = "cuda" if gpu_count() else "cpu"
        if args.tp is None:
            args.tp = size = group.size if group else size
        if group is None or group.meeting is None:  # otherwise whoever started this rank has looked
            check_size(size if group is None else 1, args.device)
    if size is not None and size > 1 and group is None:
        # the ranks check the rest, and rank 0 says what is wrong
        launch([*argv, "--device", args.device], size, check=getattr(args, "check", False))
        return 0
    if size is not None and args.device == "cuda":
        open_gpu(group.local_rank if group else 0)
    if hasattr(command, "check"):
        command.check(args)
    mark("arguments checked")
    with stdout_for_the_result(), the_only(group if size is not None else None):
        result = on_rank(command, args) if size is not None else command.run(args, None)
    if result is not None and (group is None or group.rank == 0 or size is None):
        tell(json.dumps(result) if args.json else command.show(result))
    return 0


def tell(text: str) -> None:
    """Print on stdout. What its encoding has no letter for is escaped; a reader that has had enough, such as `head`,
    is no failure."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except OSError as e:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # where the rest goes, at the interpreter's end
        if not isinstance(e, BrokenPipeError):
            raise UserError(f"cannot write the result to stdout: {e.strerror}") from e


def on_rank(command, args) -> dict | None:
    from .parallel.world import World

    mark("torch imported")
    with World.join(args.device, all_reduce=getattr(args, "sum", "auto")) as world:
        if world.size != args.tp:
            raise UserError(f"--tp {args.tp}, but torchrun started {world.size} ranks: make them equal")
        if getattr(args, "check", False) and world.size > 1 and world.board is None:
            raise UserError("--check needs ranks that meet in a folder of one host: let --tp start them, not torchrun")
        try:
            return command.run(args, world)
        except (UserError, RankError):  # it names its rank already
            raise
        except RuntimeError as e:
            if world.size == 1 or "CUDA out of memory" in str(e):
                raise
            said = str(e).strip().splitlines() or [f"{type(e).__name__} without a word"]
            raise RankError(f"rank {world.rank}: {said[0]}") from e


@contextmanager
def stdout_for_the_result():
    """Libraries that print go to stderr, for the time of a block: stdout carries the result alone."""
    if sys.stdout is None or sys.stderr is None:  # the shell has closed one of them
        yield
        return
    sys.stdout.flush()
    real = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(real, 1)
        os.close(real)
