"""Diagram 4 from a real forward: stages and collectives of every rank on one clock, waiting told from transfer.

  python -m tpgpt2_ref trace --model tiny --tp 2 --out trace.json
  python -m tpgpt2_ref trace --model random:gpt2 --tp 2 --plan as-drawn --batch 8 --prompt-len 512 --json
  python -m tpgpt2_ref trace --model random:gpt2 --tp 2 --phase decode --graph
  python -m tpgpt2_ref trace --model random:gpt2 --tp 2 --phase decode --rung +pdl --graph

--rung traces the step that `generate` runs: its collectives and the whole step, since fused kernels are no stages of
the diagram. A mark between two kernels keeps the second from starting early: traced, +pdl loses what that wins.
A prefill has the rungs fused, and halves, in which one half's sums run under the other's products.
--out writes a file for https://ui.perfetto.dev; --json prints the rows.
"""
from __future__ import annotations

from ..errors import UserError
from ..files import check_writable
from ..recorded.machine import machine_card
from ..weights import find_checkpoint
from .arguments import add_model_arguments, check_names, dtype, ranks  # noqa: F401  cli.py calls ranks

HELP = "record a forward: stages, collectives, waiting and transfer on every rank"


def add_arguments(parser):
    add_model_arguments(parser)
    parser.add_argument("--phase", choices=("prefill", "decode"), default="prefill",
                        help="a prompt, or one decode step")
    parser.add_argument("--batch", type=int, default=1, metavar="N", help="sequences (default: 1)")
    parser.add_argument("--prompt-len", type=int, default=64, metavar="N", help="tokens of each prompt, in a decode "
                        "step already in the cache (default: 64)")
    parser.add_argument("--rung", default=None, metavar="NAME", help="a decode step of the ladder, as bench decode "
                        "names it, such as +sum or +pdl; of a prefill fused or halves (default: eager, which is "
                        "gpt2.py's forward)")
    parser.add_argument("--graph", action="store_true", help="in a CUDA graph (GPUs only)")
    parser.add_argument("--repeats", type=int, default=5, metavar="N", help="runs, of which the median is kept")
    parser.add_argument("--out", default=None, metavar="trace.json", help="write a trace for Perfetto or Chrome")


def check(args):
    args.checkpoint = find_checkpoint(args.model)
    config = args.checkpoint.config
    check_names(args, config)
    for name in ("batch", "prompt_len", "repeats"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} must be at least 1, not {getattr(args, name)}")
    if args.prompt_len + (args.phase == "decode") > config.n_positions:
        raise UserError(f"{args.model} has {config.n_positions} positions: lower --prompt-len {args.prompt_len}")
    if args.rung is not None:
        check_rung(args)
    if args.graph and args.device != "cuda":
        raise UserError("--graph needs GPUs: CUDA graphs don't exist on CPUs")
    if args.out is not None:
        check_writable(args.out)


def check_rung(args):
    from ..engine.ladder import LADDER

    if args.phase == "prefill":
        from ..bench.prefill import RUNGS, why_no_halves

        if args.rung not in RUNGS:
            raise UserError(f"a prefill's --rung is {', '.join(RUNGS)}, not {args.rung!r}: add --phase decode for the "
                            "ladder's")
        if args.rung == "halves" and (why := why_no_halves(args.tp or 1, args.batch)):
            raise UserError(f"--rung halves can't run: {why}")
        return
    if args.rung not in (known := [rung.name for rung in LADDER]):
        raise UserError(f"unknown rung {args.rung!r}; known: {', '.join(known)}")
    if args.rung != "eager" and args.device != "cuda":
        raise UserError(f"--rung {args.rung} needs GPUs: on CPUs there is only eager, gpt2.py's forward")


def rung_step(args, model):
    """The decode step of --rung, with the whole of it as a stage."""
    from ..bench.step import make_rung_step
    from ..bench.timeline import as_a_stage
    from ..engine.decode_graph import cannot_graph, is_hopper
    from ..engine.ladder import rungs

    if why := cannot_graph(model):
        raise UserError(f"--rung {args.rung} can't run here: {why}")
    here = {rung.name: rung for rung in rungs(model.world.size, is_hopper(model.world.device))}
    if args.rung not in here:
        raise UserError(f"--rung {args.rung} is not on the ladder of {model.world.size} rank(s) of this GPU, which has "
                        f"{', '.join(here)}")
    return as_a_stage(make_rung_step(model, here[args.rung], args.batch, args.prompt_len), model.world)


def run(args, world) -> dict:
    from ..bench import timeline
    from ..bench.step import make_prefill_step, make_step
    from ..weights import load_model

    model = load_model(args.checkpoint, world, args.plan, dtype(args), args.backend)
    if args.rung in (None, "eager"):
        step = make_step(model, args.phase, args.batch, args.prompt_len)
    elif args.phase == "prefill":
        step = make_prefill_step(model, args.batch, args.prompt_len, args.rung == "halves")
    else:
        step = rung_step(args, model)
    recorded = timeline.record(model, step, args.repeats, args.graph)
    if args.out is not None and world.rank == 0:
        timeline.export(recorded, args.out)
    return {**recorded, "model": args.model, "tp": world.size, "plan": args.plan, "phase": args.phase,
            "rung": args.rung, "batch": args.batch, "prompt_len": args.prompt_len, "graph": args.graph,
            "dtype": dtype(args), "backend": model.impl.name, "out": args.out, "machine": machine_card()}


def show(result) -> str:
    from ..bench.timeline import text

    counts = ", ".join(f"{n} {op}" for op, n in result["counts"].items()) or "no collectives"
    clock = f"clock {result['clock']}" + (f", +-{result['clock_error_us']:.1f} us" if result["clock_error_us"] else "")
    also = " and what is fused with it" if any(r["fused"] for r in result["rows"]) else ""
    share = f"{result['communication_share']:.1%} communication{also}, of it waiting {result['waiting_share']:.1%}"
    total = f"{result['total_us']:.0f} us in all ({result['untraced_us']:.0f} without marks)"
    return "\n".join([text(result), "", f"{total}: {counts}; {share} of all ({clock})"]
                     + ([f"trace in {result['out']}: open it at https://ui.perfetto.dev"] if result["out"] else []))
