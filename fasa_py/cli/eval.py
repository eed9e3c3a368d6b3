"""measure how well sparse attention answers, beside dense attention"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..eval import report
from ..eval.plots import plot_all
from ..eval.run import ALL_TASKS, Settings
from ..eval.run import run as evaluation

_DEFAULTS = Settings()


def _budget(text: str) -> int | float:
    """A count of tokens, or a share of them written with a point."""
    return float(text) if "." in text else int(text)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", metavar="MODEL", help="GGUF file (default: the embedded demo model)")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="results; a run into it again continues it")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="CPU threads (default: all usable cores)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    group = parser.add_argument_group("what is measured")
    group.add_argument("--tasks", nargs="*", metavar="TASK", default=list(ALL_TASKS), help=", ".join(ALL_TASKS))
    group.add_argument("--lengths", nargs="+", type=int, metavar="N", default=list(_DEFAULTS.lengths))
    group.add_argument("--cases", type=int, metavar="N", default=_DEFAULTS.n_cases, help="of each task and length")
    group.add_argument("--seed", type=int, metavar="N", default=0, help="another seed gives other cases")
    group.add_argument("--answers", choices=["auto", "exact", "free"], default="auto", help="word for word, or free")
    group.add_argument("--quick", action="store_true", help="stop an exact answer at its first wrong token")
    group.add_argument("--decoded", type=int, metavar="N", default=_DEFAULTS.n_decoded, help="tokens of perplexity")
    group.add_argument("--text", nargs="+", metavar="FILE", default=[], help="texts instead of the built-in novels")
    group.add_argument("--minutes", type=float, metavar="X", help="begin no new case after this time")
    group = parser.add_argument_group("how the model attends")
    group.add_argument(
        "--methods", nargs="+", metavar="METHOD", default=list(_DEFAULTS.methods),
        help="dense, fasa-mass, fasa-ca, fasa-paper, a method of the engine, or METHOD:setting=value,...",
    )  # fmt: skip
    group.add_argument("--n-tip", nargs="+", type=_budget, metavar="N", default=[], help="dominant chunks a head")
    group.add_argument("--n-fac", nargs="+", type=_budget, metavar="N", default=[], help="positions attended to")
    group.add_argument("--split", action="store_true", help="store dominant keys apart, as the first fasa method does")
    group = parser.add_argument_group("data of your own")
    group.add_argument("--data", nargs="+", metavar="FILE", default=[], help="JSONL: LongBench, MATH500, AIME")
    group.add_argument("--longbench-config", metavar="DIR", help="folder of LongBench's dataset2prompt.json")
    group.add_argument("--max-tokens", type=int, metavar="N", help="of an answer")
    group.add_argument("-c", "--ctx", type=int, metavar="N", help="context in tokens (default: trained)")
    parser.add_argument("--plot", action="store_true", help="PNG pictures too (needs matplotlib)")


def run(args: argparse.Namespace) -> int:
    out = Path(args.out)
    records = evaluation(
        args.model, out=out, n_threads=args.threads, device=args.device, tasks=args.tasks, methods=args.methods,
        lengths=args.lengths, n_cases=args.cases, n_tip=args.n_tip, n_fac=args.n_fac, seed=args.seed,
        answers=args.answers, quick=args.quick, n_decoded=args.decoded, texts=args.text, data=args.data,
        longbench_config=args.longbench_config, max_tokens=args.max_tokens, n_ctx=args.ctx, split=args.split,
        minutes=args.minutes,
    )  # fmt: skip
    if not records:
        raise ValueError("nothing was measured: name a task or a data file")
    pictures = plot_all(records, out) if args.plot else []
    print(report.markdown(records), end="")
    for picture in pictures:
        print(f"wrote {picture}", file=sys.stderr)
    n_cut = sum(1 for r in records if r.get("n_cut"))
    if n_cut:
        print(f"\n{n_cut} of {len(records)} prompts lost their middle: the context was too short for them")
    return 0
