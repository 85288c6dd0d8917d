"""What `bench decode` and `bench prefill` share: the arguments, rows kept as they come and shown as a table."""
from __future__ import annotations

from collections.abc import Callable, Iterable

from ...config import GPT2Config
from ...recorded.machine import machine_card
from ...recorded.results import BOOK_RESULTS, Run, save
from ...weights import find_checkpoint
from ..arguments import add_imagine_argument, add_model_arguments, check_imagine, check_names, dtype


def add_arguments(parser, batch: list[int], prompt_len: list[int]) -> None:
    """Which model, and its defaults of batch and prompt length; what is left out; where it is saved."""
    add_model_arguments(parser)
    parser.set_defaults(model="random:gpt2")
    parser.add_argument("--batch", type=int, nargs="+", default=batch)
    parser.add_argument("--prompt-len", type=int, nargs="+", default=prompt_len, metavar="N")
    add_imagine_argument(parser)
    parser.add_argument("--no-peer", action="store_true", help="leave out Hugging Face transformers")
    parser.add_argument("--record", nargs="?", const=str(BOOK_RESULTS), default=None, metavar="DIR",
                        help="save the run (default DIR: the book's results)")


def check(args) -> GPT2Config:
    """Find the model, as `args.checkpoint`, and its config; refuse what no bench of it can do."""
    args.checkpoint = find_checkpoint(args.model)
    check_names(args, args.checkpoint.config)
    check_imagine(args)
    return args.checkpoint.config


def run(bench: str, sweep: Callable, args, world, *more) -> dict:
    """`sweep(model, name, dtype, batches, prompt_lens, *more, peer)` of the model that the arguments name."""
    from ...engine.decode_graph import cannot_graph
    from ...weights import load_model

    world = world.imagine(args.imagine) if args.imagine else world
    model = load_model(args.checkpoint, world, args.plan, dtype(args), args.backend)
    result = {"bench": bench, "machine": machine_card(), "rows": [], "why_eager": cannot_graph(model)}
    record(result, args, world, sweep(model, args.model, dtype(args), args.batch, args.prompt_len, *more,
                                      not args.no_peer))
    return result


def record(result: dict, args, world, measured: Iterable[tuple[dict, list[float]]]) -> None:
    """Put each row into the result; with --record save all rows after each: a run cut short leaves what it has."""
    samples = []
    for row, us in measured:
        result["rows"].append(row)
        samples.append(us)
        if args.record and world.rank == 0:
            run = Run(result["bench"], result["machine"], result["rows"])
            result["saved"] = str(save(run, args.record, samples))


def table(result: dict, width: int, times: dict[str, str]) -> str:
    """The rows by what they are of, then microseconds. times: {heading: field}; width of the rung's name."""
    head = f"{'engine':14}{'rung':{width}}{'tp':>3} {'sum':10}{'batch':>6}{'tokens':>8}"
    lines = [head + "".join(f"{heading:>12}" for heading in times)]
    for r in result["rows"]:
        us = "".join(f"{'-' if r[field] is None else format(r[field], '.1f'):>12}" for field in times.values())
        lines.append(f"{r['engine']:14}{r['rung']:{width}}{r['tp']:>3} {r['sum']:10}{r['batch']:>6}"
                     f"{r['prompt_len']:>8}{us}")
    if result["why_eager"]:
        lines.append(f"eager only: {result['why_eager']}")
    return "\n".join([*lines, *([f"saved {result['saved']}"] if "saved" in result else [])])
