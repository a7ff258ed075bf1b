"""The manifest of a checkpoint: all but its arrays, as JSON with a digest of itself."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from .files import DamagedError, flushed
from .leaves import Leaf

FORMAT = 1
"""The layout of a checkpoint on disk; a newer one is refused, not guessed at."""

NAME = "manifest.json"


def encode(value: Any, path: str, arrays: list[Leaf]) -> Any:
    """`value` as JSON has it; its arrays are added to `arrays`."""
    if value is None or isinstance(value, bool | str) or type(value) is int:
        return value
    if type(value) is float:
        return value if math.isfinite(value) else {"__float__": str(value)}
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        arrays.append((path, value))
        return {"__array__": len(arrays) - 1}
    if isinstance(value, tuple | list):
        return [encode(part, f"{path}[{i}]", arrays) for i, part in enumerate(value)]
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str) or key in ("__array__", "__float__"):
                raise TypeError(f"{path} has the key {key!r}, expected strings, and not __array__ or __float__")
        return {key: encode(part, f"{path}[{key!r}]", arrays) for key, part in value.items()}
    raise TypeError(
        f"{path} is a {type(value).__name__}, expected None, numbers, strings, arrays, and lists and dicts of them"
    )


def decode(data: Any, arrays: list[Any]) -> Any:
    """What was encoded, with lists for tuples."""
    if isinstance(data, list):
        return [decode(part, arrays) for part in data]
    if isinstance(data, dict):
        if "__array__" in data:
            return arrays[data["__array__"]]
        if "__float__" in data:
            return float(data["__float__"])
        return {key: decode(part, arrays) for key, part in data.items()}
    return data


def write(folder: Path, content: dict[str, Any]) -> None:
    """Writes `content` and its digest, which is of the values, whatever the white space."""
    content = {"format": FORMAT, **content}
    whole = json.dumps({"sha256": _digest(content), "content": content}, indent=1)
    (folder / NAME).write_text(whole, encoding="utf-8")
    flushed(folder / NAME)


def read(folder: Path) -> dict[str, Any]:
    """The content that was written; raises `DamagedError` for another, and `ValueError` for a newer format."""
    path = folder / NAME
    try:
        whole = json.loads(path.read_bytes())
        content, digest = whole["content"], whole["sha256"]
        found = _digest(content)
    except FileNotFoundError:
        raise DamagedError(f"{path} is missing") from None
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"{path} is not what was written: {error!r}") from error
    if found != digest:
        raise DamagedError(f"{path} is not what was written: its checksum differs")
    if content["format"] > FORMAT:
        raise ValueError(
            f"{folder} has format {content['format']}, of gdfx {content['gdfx']}, but this gdfx reads up to {FORMAT}: "
            "update gdfx"
        )
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
