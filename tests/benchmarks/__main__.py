"""Runs benchmarks, prints a table of ratios, and writes what was measured to a file.

python -m tests.benchmarks
python -m tests.benchmarks mlp_fashion --torch-python ~/torch/bin/python --json measured.json
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax

from gdfx.sweeps.export import write

from . import solvers, sweeps, training, updates  # noqa: F401 - they register their workloads
from .runner import GDFX, WORKLOADS, Setting, environment, measure

PACKAGES = ("jax", "jaxlib", "numpy", "optax", "scikit-learn")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description="Measures gdfx against peers.")
    parser.add_argument("names", nargs="*", help=f"of {', '.join(WORKLOADS)} (default: all)")
    parser.add_argument("--json", type=Path, metavar="PATH", help="file for all that was measured")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, once: shows that all works")
    parser.add_argument("--repetitions", type=int, default=7, help="of each contestant (default: %(default)s)")
    parser.add_argument("--torch-python", metavar="PATH", help="Python that has PyTorch (default: without PyTorch)")
    args = parser.parse_args()
    if unknown := [name for name in args.names if name not in WORKLOADS]:
        parser.error(f"names has {', '.join(unknown)}, expected some of {', '.join(WORKLOADS)}")
    if args.repetitions < 1:
        parser.error(f"--repetitions is {args.repetitions}, expected at least 1")
    if args.json and not args.json.absolute().parent.is_dir():
        parser.error(f"--json is {args.json}, but there is no directory {args.json.absolute().parent}")
    jax.config.update("jax_enable_compilation_cache", False)  # every repetition compiles

    about = environment(PACKAGES)
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    print(f"{about['device']} ({about['processor']}), {about['cores']} cores; Python {about['python']}, {versions}")
    report: dict[str, Any] = {"quick": args.quick, "environment": about, "workloads": {}}
    for name in args.names or WORKLOADS:
        setting = Setting(args.quick, args.torch_python)
        record = measure(name, setting, 1 if args.quick else args.repetitions)
        report["workloads"][name] = record
        print("\n" + table(name, record, verdicts=not args.quick, times=about["platform"] != "cpu"), flush=True)
        if args.json:
            write(args.json, json.dumps(report, indent=1))
    if args.json:
        print(f"\nwrote {args.json}")


def table(name: str, record: dict[str, Any], *, verdicts: bool, times: bool) -> str:
    """The ratios of one workload, with their quartiles; times only where they mean something to others."""
    lines = [f"{name}: {record['about']}"]
    row = "  {:<28} {:>22} {:>22} {:>22}  {}".format
    lines.append(row("time / that of gdfx", f"per {record['unit']}", "to compile", "with compiling", "").rstrip())
    for who, told in record["contestants"].items():
        if "skipped" in told:
            lines.append(f"  {who:<28} skipped: {told['skipped']}")
            continue
        ratios = told.get("ratio", {})
        cells = ["1" if who == GDFX else _cell(ratios.get(kind)) for kind in ("run", "compile", "total")]
        note = _verdicts(told) if verdicts else ""
        if times and "bandwidth" in told["median"]:
            note = f"{told['median']['bandwidth'] / 1e9:.0f} GB/s  {note}"
        if times:
            note = f"{told['median']['run'] * 1e6:.1f} us  {note}"
        lines.append(row(who, *cells, note).rstrip())
    return "\n".join(lines)


def _cell(ratio: dict[str, float] | None) -> str:
    return f"{ratio['median']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else "-"


def _verdicts(told: dict[str, Any]) -> str:
    """Of each target of a peer, and of each limit of gdfx, whether it was met; the ratio too where it has no column."""
    notes, targets = [], told.get("target", {})
    for kind, target in (targets if isinstance(targets, dict) else {"run": targets}).items():
        ratio = told["ratio"].get(kind)
        named = "" if kind == "run" else f"{kind} {_cell(ratio)}, "
        met = "not measured" if not ratio else "met" if ratio["median"] >= target else "MISSED"
        notes.append(f"{named}target {target:.3g}: {met}")
    for kind, limit in told.get("limits", {}).items():
        reached = told["median"].get(kind)
        met = "not measured" if reached is None else "met" if reached <= limit else "MISSED"
        value = "" if reached is None else f" {reached:.3g}"
        notes.append(f"{kind}{value}, at most {limit:g}: {met}")
    return "; ".join(notes)


if __name__ == "__main__":
    sys.exit(main())
