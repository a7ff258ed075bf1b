"""What was saved against what is wanted: every difference by its path."""

import json
from typing import Any

import jax

from ...serialization import from_dict, to_dict
from .leaves import Leaf, describe


def differences(saved: list[dict[str, Any]], wanted: list[Leaf]) -> list[str]:
    """How the leaves that were described and those that are wanted differ."""
    old, new = (
        {about["path"]: f"{about['dtype']}{about['shape']}" for about in leaves}
        for leaves in (saved, [describe(path, leaf) for path, leaf in wanted])
    )
    lines = [f"{path}: saved {old[path]}, wanted {new.get(path, 'none')}" for path in old if old[path] != new.get(path)]
    return lines + [f"{path}: saved none, wanted {new[path]}" for path in new if path not in old]


def written(optimizer: Any) -> dict[str, Any] | None:
    """The optimizer as `to_dict` has it, or None for one that holds functions of the user's."""
    try:
        return to_dict(optimizer)
    except TypeError:
        return None


def other_form(saved: dict[str, Any] | None, optimizer: Any) -> list[str]:
    """How the optimizer that was `written` and `optimizer` differ, but for the hyperparameters that are leaves."""
    if saved is None or written(optimizer) is None:
        return []
    old, new = (to_dict(jax.tree.map(lambda _: 0.0, opt)) for opt in (from_dict(saved), optimizer))
    return _unequal(old, new, "optimizer")


def _unequal(saved: Any, given: Any, path: str) -> list[str]:
    if isinstance(saved, dict) and isinstance(given, dict) and saved.keys() == given.keys():
        if saved.get("type") == given.get("type"):
            named = {name: "" if name in ("fields", "tuple", "dict") else f".{name}" for name in saved}
            return [line for name in saved for line in _unequal(saved[name], given[name], path + named[name])]
        return [f"{path}: saved {saved['type']}, wanted {given['type']}"]
    if isinstance(saved, list) and isinstance(given, list) and len(saved) == len(given):
        pairs = enumerate(zip(saved, given, strict=True))
        return [line for i, pair in pairs for line in _unequal(*pair, f"{path}[{i}]")]
    return [] if saved == given else [f"{path}: saved {json.dumps(saved)}, wanted {json.dumps(given)}"[:400]]
