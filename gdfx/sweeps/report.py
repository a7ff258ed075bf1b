"""A sweep as one HTML page, which needs nothing beside it and no network."""

import io
from html import escape
from typing import Any

import numpy as np

from ..extras import require
from .export import scalar, write
from .plot import draw_sweep
from .result import SweepResult, unused

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; }
body { color: #222; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
pre { background: #f4f4f4; padding: .8rem; user-select: all; white-space: pre-wrap; overflow-wrap: anywhere; }
.wide { overflow-x: auto; max-height: 36rem; border: 1px solid #ddd; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th { position: sticky; top: 0; background: #f4f4f4; padding: 0; }
th button { font: inherit; font-weight: 600; width: 100%; padding: .4rem .7rem; white-space: nowrap; }
th button { border: 0; background: none; cursor: pointer; }
th button:focus-visible { outline: 2px solid #06c; outline-offset: -2px; }
th[aria-sort=ascending] button::after { content: " \\25B2"; }
th[aria-sort=descending] button::after { content: " \\25BC"; }
td { padding: .3rem .7rem; border-top: 1px solid #eee; text-align: right; }
td.text { text-align: left; white-space: nowrap; }
tr.best td { background: #fff3dc; } tr.diverged td, tr.failed td { color: #a00; } tr.culled td { color: #666; }
figure { margin: 0; overflow-x: auto; } svg { max-width: 100%; height: auto; }
"""

SCRIPT = """
"use strict";
// The indices of the values in their order: as numbers if all are, those that are missing last in either direction.
function ordered(values, descending) {
  const missing = values.map(v => v === "" || v === "NaN");
  const numeric = values.every((v, i) => missing[i] || !Number.isNaN(Number(v)));
  const compare = (a, b) => {
    if (!numeric) return a.localeCompare(b, undefined, { numeric: true });
    const x = Number(a), y = Number(b);
    return x < y ? -1 : x > y ? 1 : 0;
  };
  return values.map((_, i) => i).sort((i, j) =>
    missing[i] || missing[j] ? missing[i] - missing[j]
      : (descending ? -1 : 1) * compare(values[i], values[j]));
}
function sortBy(table, column) {
  const headers = [...table.tHead.rows[0].cells], body = table.tBodies[0], rows = [...body.rows];
  const descending = headers[column].getAttribute("aria-sort") === "ascending";
  headers.forEach(header => header.setAttribute("aria-sort", "none"));
  headers[column].setAttribute("aria-sort", descending ? "descending" : "ascending");
  body.append(...ordered(rows.map(row => row.cells[column].dataset.value), descending).map(i => rows[i]));
}
for (const table of document.querySelectorAll("table.sortable"))
  [...table.tHead.rows[0].cells].forEach((header, i) =>
    header.querySelector("button").addEventListener("click", () => sortBy(table, i)));
"""


def write_report(result: SweepResult, path: Any) -> None:
    """Writes a page with the best member, a table that a click on a header sorts, the plots, and how it was run.

    The file is there whole, or not at all; the folder must exist. The plots are SVG in the page itself.
    """
    write(path, report_html(result))


def report_html(result: SweepResult) -> str:
    """The page, as a string."""
    title = f"Sweep: {result.size}"
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    seconds = ", ".join(f"{name}: {value:.1f} s" for name, value in result.seconds.items())
    notes = [result.executor, seconds]
    failed = "".join(f"<h3>Member {i}</h3><pre>{escape(why)}</pre>" for i, why in result.errors.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{escape(title)}</h1>
{_best(result)}
<h2>Members</h2>
<p>Ranked by {escape(result.metric)}, the {"smallest" if result.mode == "min" else "largest"} first; a click on a header
sorts by it.
Metrics are means ± standard deviations over the seeds; in brackets, over those that did not diverge.</p>
<div class="wide" tabindex="0" role="region" aria-label="Members">
{_table(result)}
</div>
<h2>Plots</h2>
<figure role="img" aria-label="Plots of the sweep">{_svg(result)}</figure>
{"<h2>Failures</h2>" + failed if failed else ""}
<h2>How it was run</h2>
{"".join(f"<p>{escape(note)}</p>" for note in notes if note)}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _best(result: SweepResult) -> str:
    try:
        best = result.best
    except RuntimeError as error:
        return f"<h2>Best</h2>\n<p>{escape(str(error))}</p>"
    point = ", ".join(f"{name} = {scalar(value)!r}" for name, value in best.point.items())
    metrics = ", ".join(f"{name}: {value:.6g}" for name, value in best.metrics.items())
    return (
        f"<h2>Best: member {best.index}</h2>\n<pre><code>{escape(repr(best.optimizer))}</code></pre>\n"
        f"<p>{escape(point)}</p>\n<p>{escape(metrics)}; params of seed {best.seed}</p>"
    )


def _table(result: SweepResult) -> str:
    """Every member, best first: what is shown, and in `data-value` what is sorted by."""
    order, status = result.order, result.status
    ranks = [str(rank) for rank in np.argsort(order) + 1]
    columns = {"rank": ("", ranks, ranks)}
    numbers = iter([np.arange(len(order)), *result.varied.values(), *(result.mean(name) for name in result.metrics)])
    for name, texts in result.cells().items():
        values = next(numbers, None)
        keys = texts if values is None or values.dtype == object else [_number(v) for v in values]
        columns[unused(name, columns)] = ' class="text"' if keys is texts else "", texts, keys
    reprs = [repr(optimizer) for optimizer in result.optimizers]
    columns[unused("optimizer", columns)] = ' class="text"', reprs, reprs
    head = "".join(
        f'<th scope="col" aria-sort="{"ascending" if name == "rank" else "none"}">'
        f'<button type="button">{escape(name)}</button></th>'
        for name in columns
    )
    best, lines = result.best_index, []
    for i in order:
        row = "".join(
            f'<td{kind} data-value="{escape(keys[i])}">{escape(texts[i])}</td>'
            for kind, texts, keys in columns.values()
        )
        lines.append(f'<tr class="{"best" if i == best else status[i]}">{row}</tr>')
    body = "\n".join(lines)
    return f'<table class="sortable">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'


def _number(value: Any) -> str:
    """A number as JavaScript reads it; nothing for NaN."""
    value = float(value)
    return "" if np.isnan(value) else repr(value) if np.isfinite(value) else "Infinity" if value > 0 else "-Infinity"


def _svg(result: SweepResult) -> str:
    """The plots, as an element of the page that is the same whenever it is made."""
    image = io.StringIO()
    figure = draw_sweep(result, path="")
    with require("matplotlib", "examples").rc_context({"svg.hashsalt": "gdfx"}):
        figure.savefig(image, format="svg", metadata={"Date": None})
    return image.getvalue()[image.getvalue().index("<svg") :]
