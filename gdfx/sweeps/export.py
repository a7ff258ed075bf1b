"""A sweep for other programs: JSON, CSV, pandas."""

import csv
import io
import json
import math
import os
import secrets
from pathlib import Path
from typing import Any

import numpy as np

from ..extras import require
from ..training.checkpoints.files import flush_folder
from .result import SweepResult, shown, unused


def to_dict(result: SweepResult) -> dict[str, Any]:
    """All but the params, in plain Python that JSON can hold: a number that is not finite is None.

    The keys: metric, mode, seeds, best (a member, None if all diverged or failed), members, lineage, executor, seconds.
    Each of the members, which stand in their own order, has its rank (from 1), point, optimizer (the repr), status,
    culled_at, error, and for each seed diverged, diverged_at, metrics and history (a list a seed, of a number a step).
    """
    rank, status = _rank(result), result.status
    members = [
        {
            "rank": int(rank[i]),
            "point": point,
            "optimizer": repr(result.optimizers[i]),
            "status": status[i],
            "culled_at": result.culled_at[i],
            "error": result.errors.get(i),
            "diverged": result.diverged[i],
            "diverged_at": result.diverged_at[i],
            "metrics": {name: values[i] for name, values in result.metrics.items()},
            "history": {name: values[i] for name, values in result.history.items()},
        }
        for i, point in enumerate(result.points)
    ]
    about = {
        "metric": result.metric,
        "mode": result.mode,
        "seeds": result.seeds,
        "best": result.best_index,
        "members": members,
        "lineage": result.lineage,
        "executor": result.executor,
        "seconds": result.seconds,
    }
    return _plain(about)


def to_json(result: SweepResult, path: Any) -> None:
    """Writes `to_dict(result)`."""
    write(path, json.dumps(to_dict(result), allow_nan=False, ensure_ascii=False, indent=1))


def to_rows(result: SweepResult) -> list[dict[str, Any]]:
    """A row for each member and seed: member, rank, seed, what was varied, metrics, how it ended, optimizer.

    What a member lacks is None. A name that is taken already has an underscore after it.
    """
    rank, status = _rank(result), result.status
    names = dict.fromkeys(name for point in result.points for name in point)
    rows = []
    for i, point in enumerate(result.points):
        for j, seed in enumerate(result.seeds):
            row: dict[str, Any] = {"member": i, "rank": int(rank[i]), "seed": seed}
            for name in names:
                row[unused(name, row)] = scalar(point.get(name))
            for name, values in result.metrics.items():
                row[unused(name, row)] = np.asarray(values[i, j]).astype(float).item()
            for name, value in {
                "status": status[i],
                "diverged": bool(result.diverged[i, j]),
                "diverged_at": int(result.diverged_at[i, j]),
                "culled_at": int(result.culled_at[i]),
                "error": result.errors.get(i),
                "made_by": repr(result.optimizers[i]),
            }.items():
                row[unused(name, row)] = value
            rows.append(row)
    return rows


def to_csv(result: SweepResult, path: Any) -> None:
    """Writes the rows of `to_rows`, in UTF-8, with "nan" for what is not a number and nothing for what is absent."""
    rows = to_rows(result)
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue())


def to_pandas(result: SweepResult) -> Any:
    """The rows of `to_rows`, as a `DataFrame`."""
    return require("pandas", "examples").DataFrame(to_rows(result))


def write(path: Any, content: str | bytes) -> None:
    """Writes a file that is there whole, or not at all; what was there before stays until then.

    Raises `FileNotFoundError` if the folder does not exist.
    """
    path = Path(os.path.realpath(path))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path is {path}, and there is no folder {path.parent}: make it first")
    if path.is_dir():
        raise IsADirectoryError(f"path is {path}, a folder: expected the name of a file")
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(part, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def _rank(result: SweepResult) -> np.ndarray:
    return np.argsort(result.order) + 1


def scalar(value: Any) -> Any:
    """What a cell can hold: a number, a string, a truth value or None; the text of anything else."""
    value = value.item() if isinstance(value, np.generic) else value
    return value if value is None or isinstance(value, int | float | str) else shown(value)


def _plain(value: Any) -> Any:
    """The value as JSON has it, with None for a number that is not finite."""
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if hasattr(value, "__array__"):
        value = np.asarray(value)
        value = (value if value.dtype.kind in "biuUS" else value.astype(float)).tolist()
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return scalar(value)
