"""Writes docs/performance.md and its plots from what `python -m tests.benchmarks --json` measured.

python docs/make_performance.py                    # from docs/performance/*.json
python docs/make_performance.py measured.json ...  # takes the workloads of these files over into those, before
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "performance.md"
FOLDER = ROOT / "docs" / "performance"  # a file for each platform, `cpu.json`, and its plots
GDFX, MISSED = "gdfx", ", **missed**"

GROUPS = {  # by how the workloads' names begin
    "The update alone": ("update_", "eager_"),
    "Training": ("mlp_", "cnn_", "transformer_"),
    "Sweeps": ("sweep_",),
    "Import": ("import",),
    "Others": ("",),
}
# The names of what is measured, in the order of the columns.
KINDS = {"run": "per {unit}", "trace": "trace", "lower": "lower", "trace_lower": "trace and lower", "backend": "XLA"}
KINDS |= {"compile": "to compile", "first_step": "first step", "first": "start to first step", "total": "from nothing"}
LIMITED = {"memory_over": "memory over params, state and gradients", "beyond_jax": "seconds"}
# Why a workload misses what was aimed at.
WHY: dict[str, str] = {
    "mlp_digits": "the bare compiled scan of the same step is the limit of XLA at this size; no program can be ten "
    "times faster than the loop",
    "mlp_fashion": "between 1.4 and 1.6 from run to run; the products of matrices take most of the time of both",
    "cnn_fashion": "the ratio varies by a tenth from run to run",
    "transformer_random": "the scan makes an epoch in one call, `fit` the steps of about a second, so that one can "
    "watch and stop it; in each call the system hands out the memory of the activations anew",
    "sweep_rates": "the products of matrices alone take more than half of the time of gdfx: the work is bound by the "
    "arithmetic of the cores, which the loops use as well",
    "update_adam_ten": "XLA makes the same of both, ten arrays' worth of memory read and written; a loop that it "
    "compiles for a CPU writes one array, without which seven would do",
    "update_clip_adamw_ten": "a loop that XLA compiles for a CPU writes one array: eleven arrays' worth of memory are "
    "read and written, where PyTorch's fused kernel moves eight; written by hand in jax.numpy it takes no less",
    "update_recipe_thousand": "a program that only scales as many arrays, of 8 numbers each, takes five sixths of the "
    "time of gdfx: XLA starts a kernel for each array that is written, and the work in it is the lesser part",
}
HEAD = """\
# Performance

This page and its plots are written by `docs/make_performance.py` from what `python -m tests.benchmarks` measured, of
which every repetition is kept: {files}.

## How to measure

```sh
python -m tests.benchmarks --torch-python torch/bin/python --json measured.json
python docs/make_performance.py measured.json  # takes it over into this page
```

Names of workloads after `tests.benchmarks` run these only; `--help` lists them. PyTorch runs in a process of its own,
in the environment whose Python is given. Peers that are not installed are skipped, with a word here. The script takes
each workload over in place of what was measured of it before on the same platform, and keeps the others.

## How to read

A number is the time of a peer divided by the time of gdfx for the same work: **above 1 gdfx is faster**, at 2 it takes
half the time. It is the median of the ratios of all repetitions; in brackets, and in the plots as a bar, stand their
quartiles. In each repetition all contestants run once, in turn, and each time another is the first, so that a machine
that slows down does so for all of them; one repetition goes before those that count, and all results are waited for. A
target is the ratio that was aimed at, and stands here whether it was met or missed. Ratios of memory are read alike.

From a CPU there are ratios only, as its times say little about another machine; from a GPU there are times and
bandwidths as well.

The same program of gdfx, on the same arrays, took half as long again for `update_clip_adamw_ten` in one minute as in
the next, presumably as others on this rented machine used its last cache and memory: XLA compiles it to loops that go
over the arrays more than once. PyTorch's kernel goes over them once, and its time changed little. So runs an hour apart
gave 0.88 and 1.37 for the ratio of these two.
"""


class Ratio(NamedTuple):
    """A dot of a plot."""

    workload: str
    label: str
    low: float
    median: float
    high: float
    target: float  # 0: none


def take_over(path: Path) -> None:
    """Merges the workloads that were measured into the file of their platform."""
    report = json.loads(path.read_text(encoding="utf-8"))
    if report["quick"]:
        sys.exit(f"{path} is of a --quick run, which measures nothing: run it without")
    about = {name: told for name, told in report["environment"].items() if name != "system"}
    file = FOLDER / f"{about['platform']}.json"
    merged = measured().get(about["platform"], {"environment": about, "workloads": {}})
    if merged["environment"] != about:
        sys.exit(f"{path} was measured on {about}, but {file} on {merged['environment']}: delete that to begin anew")
    merged["workloads"] |= report["workloads"]
    FOLDER.mkdir(exist_ok=True)
    file.write_text(json.dumps(merged, indent=1) + "\n", encoding="utf-8")


def measured() -> dict[str, dict[str, Any]]:
    """The reports that the page is made of, by platform."""
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def grouped(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The workloads under the headings of `GROUPS`."""
    groups: dict[str, dict[str, Any]] = {heading: {} for heading in GROUPS}
    for name, record in report["workloads"].items():
        heading = next(heading for heading, begins in GROUPS.items() if name.startswith(begins))
        groups[heading][name] = record
    return {heading: workloads for heading, workloads in groups.items() if workloads}


def ratios(workloads: dict[str, Any]) -> list[Ratio]:
    """What is aimed at, and that of a unit of work also where nothing is."""
    found = []
    for name, record in workloads.items():
        for who, told in record["contestants"].items():
            aims, known = targets(told), told.get("ratio", {})
            for kind in in_order(known):
                if known[kind] and kind in ("run", *aims):
                    label = who if kind == "run" else f"{who}, {KINDS.get(kind, kind)}"
                    found.append(Ratio(name, label, **known[kind], target=aims.get(kind, 0.0)))
    return found


def in_order(kinds: Iterable[str]) -> list[str]:
    return sorted(kinds, key=[*KINDS, *sorted(kinds)].index)


def targets(told: dict[str, Any]) -> dict[str, float]:
    """By kind; a bare number is the target of a unit of work."""
    target = told.get("target", {})
    return target if isinstance(target, dict) else {"run": target}


def page(reports: dict[str, dict[str, Any]]) -> str:
    files = ", ".join(f"[{name}.json](performance/{name}.json)" for name in reports)
    parts = [HEAD.format(files=files)]
    for platform, report in reports.items():
        parts.append(f"## On a {platform.upper()}\n\n{machine(report)}\n")
        for heading, workloads in grouped(report).items():
            parts.append(f"### {heading}\n\n{abouts(workloads)}\n")
            if ratios(workloads):
                file = plot_name(platform, heading)
                parts.append(f"![{heading}: time of the peers over that of gdfx](performance/{file})\n")
            parts.append(table(workloads, absolute=platform != "cpu") + "\n")
    return "\n".join([*parts, limits(reports)])


def machine(report: dict[str, Any]) -> str:
    """What was measured on, in a line."""
    about = report["environment"]
    device = about["processor"] if about["platform"] == "cpu" else f"{about['device']} ({about['processor']})"
    told = [c for w in report["workloads"].values() for c in w["contestants"].values()]
    torch = dict.fromkeys(f"PyTorch {c['torch']}" for c in told if "torch" in c)
    versions = [f"{name} {version}" for name, version in about["versions"].items()]
    return f"{device}, {about['cores']} cores. Python {', '.join([about['python'], *versions, *torch])}."


def abouts(workloads: dict[str, Any]) -> str:
    lines = []
    for name, record in workloads.items():
        count = len(record["contestants"][GDFX]["repetitions"])
        random = record["sizes"].get("data") == "random" and "random" not in record["about"]
        about = record["about"] + ", on random numbers of these shapes" * random
        lines.append(f"- `{name}`: {about}; {count} repetition{'s' * (count != 1)}.")
    return "\n".join(lines)


def table(workloads: dict[str, Any], *, absolute: bool) -> str:
    """All ratios; where `absolute`, also times and bandwidths. gdfx has a line where there is more to say of it."""
    told = [c for record in workloads.values() for c in record["contestants"].values() if "skipped" not in c]
    kinds = {kind for c in told for kind, ratio in c.get("ratio", {}).items() if ratio}
    kinds = in_order(kinds - {"trace_lower", "compile", "total"} if "first" in kinds else kinds)  # whose parts are told
    units = " or ".join(dict.fromkeys(record["unit"] for record in workloads.values()))
    shown = [what for what in EXTRAS if absolute or what not in ABSOLUTE]
    extras = {what: EXTRAS[what] for what in shown if any(what in c["median"] for c in told)}
    names = [KINDS.get(kind, kind).format(unit=units) for kind in kinds] + [name for name, _ in extras.values()]
    rows = [["Workload", "Peer", *names, "Target"], ["---"] * (len(names) + 3)]
    for name, record in workloads.items():
        for who, c in record["contestants"].items():
            if "skipped" in c:
                rows.append([f"`{name}`", who, *[""] * len(names), f"skipped: {c['skipped']}"])
                continue
            cells = [cell(c.get("ratio", {}).get(kind), spread=kind == "run") for kind in kinds]
            cells += [show(c["median"][what]) if what in c["median"] else "" for what, (_, show) in extras.items()]
            cells.append(", ".join(verdicts(c)))
            if who != GDFX or any(cells):
                rows.append([f"`{name}`", who, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def cell(ratio: dict[str, float] | None, *, spread: bool) -> str:
    low, median, high = (number(ratio[part]) for part in ("low", "median", "high")) if ratio else ("", "", "")
    return f"{median} ({low} to {high})" if ratio and spread else median


def verdicts(contestant: dict[str, Any]) -> list[str]:
    """For each target of a peer, and each limit of gdfx, whether it was met."""
    notes = []
    for kind, target in targets(contestant).items():
        ratio = contestant["ratio"].get(kind)
        reached = f"{number(ratio['median'])} of " if ratio else ""
        met = "not measured" if not ratio else "met" if ratio["median"] >= target else "**missed**"
        notes.append(("" if kind == "run" else f"{KINDS.get(kind, kind)} {reached}") + f"{target:.3g}: {met}")
    for kind, limit in contestant.get("limits", {}).items():
        reached = contestant["median"].get(kind)
        met = "not measured" if reached is None else number(reached) + (", met" if reached <= limit else MISSED)
        notes.append(f"{LIMITED.get(kind, kind)} at most {limit:.3g}: {met}")
    return notes


def number(value: float) -> str:
    """Three digits."""
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def duration(seconds: float) -> str:
    unit, factor = ("s", 1) if seconds >= 1 else ("ms", 1e3) if seconds >= 1e-3 else ("µs", 1e6)
    return f"{number(seconds * factor)} {unit}"


EXTRAS: dict[str, tuple[str, Callable[[float], str]]] = {  # the columns of what is no ratio
    "best": ("best accuracy", lambda value: f"{value:.4f}"),
    "run": ("time", duration),
    "bandwidth": ("bandwidth", lambda value: f"{value / 1e9:.0f} GB/s"),
}
ABSOLUTE = ("run", "bandwidth")  # of which a CPU's are not told


def limits(reports: dict[str, dict[str, Any]]) -> str:
    """Why what was missed was missed."""
    lines = ["## Limits\n"]
    for platform, report in reports.items():
        for name, record in report["workloads"].items():
            missed = [r for r in ratios({name: record}) if r.median < r.target]
            told = [f"{number(r.median)} of {r.target:.3g} (`{r.label}`)" for r in missed]
            told += [note.removesuffix(MISSED) for note in verdicts(record["contestants"][GDFX]) if MISSED in note]
            if told:
                why = WHY.get(name, "why is not known yet")
                lines.append(f"- `{name}` on a {platform.upper()} reached {', '.join(told)}: {why}.")
    return "\n".join(lines if len(lines) > 1 else [*lines, "No target was missed."]) + "\n"


def plot_name(platform: str, heading: str) -> str:
    return f"{platform}-{heading.lower().replace(' ', '-')}.svg"


def ticks_between(low: float, high: float) -> list[float]:
    """Round numbers, if possible at least four, and 1 among them."""
    choices = (1, 2, 5), (1, 1.5, 2, 3, 5, 7), (1, 1.2, 1.4, 1.6, 1.8, *range(2, 10)), range(100, 1000, 5)
    every = [[digit * 10.0**power for power in range(-5, 6) for digit in digits] for digits in choices]
    ticks = [[tick for tick in some if low <= tick <= high] for some in every]
    return next((some for some in ticks if len(some) >= 4), ticks[-1])


def plot(workloads: dict[str, Any], path: Path) -> None:
    """A line for each ratio: its median as a dot, its quartiles as a bar, its target as a stroke."""
    rows: list[str | Ratio] = []
    for ratio in ratios(workloads):
        rows += [ratio] if ratio.workload in rows else [ratio.workload, ratio]
    figure = Figure(figsize=(8, 0.9 + 0.23 * len(rows)), layout="constrained")
    ax = figure.add_subplot(xscale="log", ylim=(len(rows) - 0.4, -0.6))
    right = ax.get_yaxis_transform()  # x in fractions of the axis, y in rows
    for y, row in enumerate(rows):
        if isinstance(row, str):
            continue
        color = "C0" if row.median >= 1 else "C1"
        ax.plot([row.low, row.high], [y, y], color=color, linewidth=5, alpha=0.4, solid_capstyle="butt")
        ax.plot(row.median, y, "o", color=color, markersize=6)
        ax.text(1.01, y, number(row.median), transform=right, va="center", fontsize="small")
        if row.target:
            ax.plot(row.target, y, "|", color="black", markersize=11, markeredgewidth=1.6)
    for name, style in (("gdfx is faster", "C0o"), ("gdfx is slower", "C1o"), ("target", "k|")):
        ax.plot([], [], style, label=name, markersize=7, markeredgewidth=1.6)
    ax.set_yticks(range(len(rows)), [row if isinstance(row, str) else row.label for row in rows], fontsize="small")
    for row, tick in zip(rows, ax.get_yticklabels(), strict=True):
        tick.set_fontweight("bold" if isinstance(row, str) else "normal")
    ax.axvline(1, color="0.4", linewidth=1, zorder=0)
    ticks = ticks_between(*ax.get_xlim())
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", alpha=0.3)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_xlabel("time of the peer / time of gdfx")
    figure.legend(loc="outside upper right", ncols=3, frameon=False, fontsize="small")
    with mpl.rc_context({"svg.hashsalt": "gdfx"}):  # or else every file is another
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)


if __name__ == "__main__":
    for name in sys.argv[1:]:
        take_over(Path(name))
    for drawn in FOLDER.glob("*.svg"):
        drawn.unlink()
    for platform, report in measured().items():
        for heading, workloads in grouped(report).items():
            if ratios(workloads):
                plot(workloads, FOLDER / plot_name(platform, heading))
    PAGE.write_text(page(measured()), encoding="utf-8")
