"""The cost model: fit it to recorded runs, then ask what a collective or a whole forward costs.

  python -m tpgpt2_ref cost fit book/results/MACHINE --out model.json
  python -m tpgpt2_ref cost predict --model model.json --op all_reduce --bytes 24576 --world 2
  python -m tpgpt2_ref cost forward --model model.json --gpt2 gpt2-xl --tp 2 --batch 8 --tokens 1

A model states its error on sizes it was not fitted to. Runs of two machines are not mixed.
"""
from __future__ import annotations

from pathlib import Path

from ..config import FAMILY, PLANS
from ..cost import collectives as cost
from ..cost import forward as cost_forward
from ..errors import UserError
from ..recorded import results
from ..trace import OPS

HELP = "fit the cost model to recorded runs, and predict with it"
KINDS = ("collectives", "decode", "prefill")


def add_arguments(parser):
    sub = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    fit = sub.add_parser("fit", help="fit a model to recorded runs of one machine")
    fit.add_argument("results", nargs="+", metavar="RESULTS", help="collectives.json, decode.json, prefill.json, or "
                     "a machine's folder with them")
    fit.add_argument("--out", required=True, metavar="MODEL.json")
    predict = sub.add_parser("predict", help="microseconds of one collective")
    predict.add_argument("--model", required=True, metavar="MODEL.json")
    predict.add_argument("--op", required=True, choices=OPS)
    predict.add_argument("--bytes", type=int, required=True, metavar="N", help="one rank's input")
    predict.add_argument("--world", type=int, required=True, metavar="N", help="ranks")
    forward = sub.add_parser("forward", help="microseconds of a forward, its collectives and where more ranks pay")
    forward.add_argument("--model", required=True, metavar="MODEL.json")
    forward.add_argument("--gpt2", required=True, choices=tuple(FAMILY))
    forward.add_argument("--tp", type=int, required=True, metavar="N", help="ranks")
    forward.add_argument("--batch", type=int, required=True, metavar="N", help="sequences")
    forward.add_argument("--tokens", type=int, required=True, metavar="N", help="new tokens a sequence: 1 is a decode "
                         "step, more is a prefill")
    forward.add_argument("--context", type=int, default=0, metavar="N", help="tokens a sequence has in the cache")
    forward.add_argument("--rung", default=None, help="of the decode ladder (default: the fastest that was measured)")
    forward.add_argument("--plan", choices=PLANS, default="shipped")
    for p in (predict, forward):
        p.add_argument("--path", default=None, help="nccl, gloo, nccl/sockets, … (default: the fastest measured)")
    predict.add_argument("--graph", action="store_true", help="inside a CUDA graph")


def check(args):
    for name in ("bytes", "world", "tp", "batch", "tokens"):
        if getattr(args, name, 1) < 1:
            raise UserError(f"--{name} must be at least 1, not {getattr(args, name)}")
    if getattr(args, "world", 2) < 2:
        raise UserError("--world 1 has no collective: give 2 or more")
    if getattr(args, "context", 0) < 0:
        raise UserError(f"--context must be at least 0, not {args.context}")
    if args.what == "forward":
        positions = FAMILY[args.gpt2].n_positions
        if args.context + args.tokens > positions:
            raise UserError(f"{args.gpt2} has {positions} positions: --context {args.context} and --tokens "
                            f"{args.tokens} are more")


def run(args, world) -> dict:
    if args.what == "fit":
        return fit(args.results, args.out)
    run = results.load(args.model)
    if run.name != "cost_model":
        raise UserError(f"{args.model} holds {run.name!r}, not a cost model: make one with cost fit")
    if args.what == "predict":
        answer = cost.predict(run.rows, args.op, args.bytes, args.world, args.path, args.graph)
    else:
        config, how = FAMILY[args.gpt2], {"rung": args.rung, "path": args.path, "plan": args.plan}
        answer = cost_forward.forward(run.rows, config, args.tp, args.batch, args.tokens, args.context, **how)
        if args.tp > 1 and answer["us"] is not None:
            answer["crossover_batch"] = cost_forward.crossover(run.rows, config, args.tp, args.tokens, args.context,
                                                               **how)
    return {"what": args.what, **answer, "machine": run.label, "this_machine": run.is_this_machine}


def fit(paths: list[str], out: str) -> dict:
    """Read the runs, fit what they allow, write the model."""
    runs = {}
    for path in paths:
        files = [Path(path)] if not Path(path).is_dir() else [
            f for f in sorted(Path(path).glob("*.json")) if f.stem in KINDS]
        if not files:
            raise UserError(f"{path} holds none of {', '.join(f'{k}.json' for k in KINDS)}")
        for file in files:
            run = results.load(file)
            if run.name not in KINDS:
                raise UserError(f"{file} holds {run.name!r}; a cost model is fitted to {', '.join(KINDS)}")
            runs.setdefault(run.name, []).append(run)
    results.same_machine([run for group in runs.values() for run in group])
    merged = {name: results.one_machine(group) for name, group in runs.items()}
    rows = cost.fit_collectives(merged["collectives"].rows) if "collectives" in merged else []
    for name in ("decode", "prefill"):
        if name in merged:
            rows += cost_forward.fit_forward(name, merged[name].rows, rows)
    if not rows:
        raise UserError("nothing to fit: too few decode or prefill rows, and no collectives "
                        "(bench collectives --record)")
    first = next(iter(merged.values()))
    return {"what": "fit", "model": str(results.write(results.Run("cost_model", first.machine, rows), out)),
            "rows": rows, "machine": first.label}


def show(result) -> str:
    where = f"measured on {result['machine']}"
    if result["what"] == "fit":
        lines = [f"{'op':15}{'path':22}{'ranks':>6}{'graph':>6}{'from bytes':>13}{'alpha us':>10}{'GB/s':>9}"
                 f"{'median error':>14}{'worst':>8}{'its spread':>12}"]
        for r in result["rows"]:
            rate = f"{1e-3 / r['beta_us_per_byte']:.2f}" if r["beta_us_per_byte"] else "-"  # of a link, or memory
            path = f"{r['path']}, batch >= {r['from_batch']}" if r.get("from_batch", 1) > 1 else r["path"]
            lines.append(f"{r['op']:15}{path:22}{r['world']:>6}{'yes' if r['graph'] else 'no':>6}"
                         f"{r['from_bytes']:>13,}{r['alpha_us']:>10.1f}{rate:>9}{r['heldout_median_error']:>14.1%}"
                         f"{r['heldout_worst_error']:>8.1%}"
                         + (f"{r['heldout_worst_spread']:>12.1%}" if "heldout_worst_spread" in r else ""))
        return "\n".join([*lines, "errors are on sizes and forwards that were not fitted; the spread is half of p10 to "
                          f"p90 at the size with the worst; {where}; kept in {result['model']}"])
    paper = " (on paper: not measured with that many ranks)" if result["on_paper"] else ""
    if result["what"] == "predict":
        return (f"{result['us']:.1f} us over {result['path']}{paper}; median error on held-out sizes "
                f"{result['heldout_median_error']:.1%}; {where}")
    calls = " + ".join(f"{n} {op}" for op, n in result["collectives"].items()) or "no collective"
    lines = [f"{calls}: {result['communication_us']:.0f} us, {result['bytes_a_rank']:,} bytes a rank{paper}"]
    if result["us"] is None:
        several = " of several ranks" if result["tp"] > 1 else ""
        lines.append(f"no {result['phase']} run{several} in the model, so the work between them is unknown: fit it "
                     f"with a {result['phase']}.json that has one")
    else:
        share = result["communication_share"]
        lines.append(f"{result['us']:.0f} us in all ({result['rung']}), communication {share:.1%}")
        if "crossover_batch" in result:
            batch = result["crossover_batch"]
            where_it_pays = f"from batch {batch}" if batch else "at no batch to 4096"
            lines.append(f"--tp {result['tp']} beats one rank {where_it_pays}")
    return "\n".join([*lines, where])
