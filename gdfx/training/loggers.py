"""Logs of a training run in files, a row a step: callables for `fit(..., watch=...)`."""

import csv
import io
import itertools
import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path

Row = dict[str, Any]  # a Python number for "step" and for each other name


class _Log:
    """A file with a row for each step, which goes on where the run goes on."""

    _start: str  # what the file begins with
    _header: int  # how many lines stand before the rows

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(os.path.abspath(path))
        self._next: int | None = None  # the step whose row comes next; None where the file is yet to be read
        self._last: tuple[Row, int] = ({}, 0)  # the row before that, and where it begins
        self._waiting: list[Any] = []  # the report of step 0: columns are not known yet, and an old log stays till then

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    def __call__(self, report: Any) -> None:
        steps, size = len(report.history.get("loss", ())), None
        wanted, self._next = self._next, None  # until all is written
        if steps:
            rows, self._waiting = _rows(report, steps, self._waiting), []
            if wanted != (first := report.step - steps + 1):
                last, size = self._go_on(first)
                rows = [row for row in rows if row["step"] > last]
        elif report.evaluation and wanted == report.step + 1:  # evaluated only once its row was written
            row, size = self._last
            rows = [row | report.evaluation]
        else:
            self._waiting = [report] if report.evaluation else []
            return
        lines = [line.encode() for line in self._lines(rows)]
        # Open for no longer than it takes, as a run may end in any way.
        with open(self.path, "ab") as file:
            if size is not None:
                file.truncate(size)  # what is kept is not written again, so that nothing can happen to it
            end = file.seek(0, os.SEEK_END) + sum(map(len, lines))
            file.write(b"".join(lines))
        self._next, self._last = report.step + 1, (rows[-1], end - len(lines[-1]))

    def _go_on(self, first: int) -> tuple[int, int]:
        """The last step in the file that is before `first`, -1 without one, and the bytes up to the end of its row."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = self.path.read_bytes() if self.path.exists() else b""
        *lines, _ = content.split(b"\n")  # the process was killed while it wrote what has no end
        known, text, steps = content.startswith(self._start[: len(content)].encode()), [], []
        try:
            text = [line.decode() for line in lines]
            steps = self._steps(text) if text else []
        except (ValueError, TypeError, KeyError, csv.Error):  # no text, no JSON, no number, no step
            known = False
        if not known or any(after != before + 1 for before, after in itertools.pairwise(steps)):
            raise ValueError(
                f"{self.path} is not a file that {type(self).__name__} has written, and is left as it is: "
                "give another path"
            )
        # Before step 1 there is nothing to go on from: the run begins anew.
        kept = [step for step in steps if step < first] if first > 1 else []
        if kept and kept[-1] != first - 1:
            raise ValueError(
                f"{self.path} ends with step {kept[-1]}, but the run goes on with step {first}: it is the log of "
                "another run, or has lost its end. Give another path"
            )
        kept_lines = lines[: self._header + len(kept)] if kept else []
        self._begin([line.decode() for line in kept_lines])
        return kept[-1] if kept else -1, sum(len(line) + 1 for line in kept_lines)

    def _begin(self, lines: list[str]) -> None:
        """Is told of the lines of the file that is gone on with; of none of a new one."""

    def _steps(self, lines: list[str]) -> list[int]:
        """The steps of the rows in the file."""
        raise NotImplementedError

    def _lines(self, rows: list[Row]) -> list[str]:
        """What to write for `rows`, the last of these by itself."""
        raise NotImplementedError


class csv_logger(_Log):
    """Writes a row for each step to a CSV file: the step, the scalars of the history, and what `evaluate` returned.

    The loss and what else a step tells are from before its update, and an evaluation, on the row of its step, is from
    after it; step 0 has a row for the evaluation of the params at the start. The scalars in `aux` go by their path,
    `aux/accuracy`; entries that are not real scalars are left out. Numbers are written in full, not-a-number and
    infinities as `nan` and `inf`, and what a step lacks is empty. The columns are those of the first report of steps.

    A row is in the file once its report is over. A run that resumes goes on with the file: rows of steps that are made
    again, and half a row that a killed process has left, are cut off. A run that begins at the first step begins the
    file anew.

    Raises, when it is told of the first steps:
        ValueError: the file is no such log, or ends before the run goes on; or, later, there is a new column.
    """

    _start, _header = "step,", 1
    _columns: tuple[str, ...] = ()

    def _begin(self, lines):
        self._columns = tuple(next(csv.reader(lines[:1]), ()))

    def _steps(self, lines):
        header, *rows = csv.reader(lines)
        if any(len(row) != len(header) for row in rows):
            raise ValueError
        return [int(row[0]) for row in rows]

    def _lines(self, rows):
        columns, header = self._columns, ""
        if not columns:
            # The last first: what was evaluated before the first step comes after what a step tells.
            columns = tuple(dict.fromkeys(name for row in reversed(rows) for name in row))
            header = _csv_line(columns)
        for row in rows:
            if new := [name for name in row if name not in columns]:
                raise ValueError(
                    f"{self.path} has no column for {', '.join(new)}, which step {row['step']} has: the columns are "
                    "those of the first report. Give another path, or use json_lines_logger"
                )
        lines = [_csv_line([row.get(name, "") for name in columns]) for row in rows]
        self._columns = columns
        return [header, *lines]


class json_lines_logger(_Log):
    """Writes a JSON object for each step to a file, one a line: see `csv_logger`, with which it shares the rest.

    The names need not be the same in all lines. JSON knows neither not-a-number nor infinities: these become `null`.
    """

    _start, _header = '{"step": ', 0

    def _steps(self, lines):
        return [int(json.loads(line)["step"]) for line in lines]

    def _lines(self, rows):
        rows = [{name: x if math.isfinite(x) else None for name, x in row.items()} for row in rows]
        return [json.dumps(row, allow_nan=False) + "\n" for row in rows]


def _csv_line(fields: Iterable[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerow(fields)
    return out.getvalue()


def _rows(report: Any, steps: int, before: list[Any]) -> list[Row]:
    """The row of the report `before`, and those of a report of steps, with the evaluation on the last."""
    columns: dict[str, list[Any]] = {"step": list(range(report.step - steps + 1, report.step + 1))}
    for path, column in tree_leaves_with_path(report.history):
        name = keystr(path, simple=True, separator="/")
        if column.ndim == 1 and (numbers := _numbers(column)) is not None:
            if name in columns:
                raise ValueError(f"two entries of the history would be called {name} in a log: rename one")
            columns[name] = numbers
    evaluations = [told.evaluation or {} for told in (*before, report)]
    if twice := [name for evaluation in evaluations for name in evaluation if name in columns]:
        raise ValueError(f"evaluate returned {twice[0]}, which each step has too: call it val_{twice[0]}")
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    rows[-1] |= evaluations[-1]
    return [{"step": told.step} | told.evaluation for told in before] + rows


def _numbers(column: Any) -> list[Any] | None:
    """An array as Python's numbers; None if they are not real."""
    if jnp.issubdtype(column.dtype, jnp.floating):
        return [float(str(x)) for x in column]  # 0.1 in float32 is 0.1, not 0.10000000149011612
    return column.tolist() if column.dtype.kind in "biu" else None
