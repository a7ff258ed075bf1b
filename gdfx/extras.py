"""Packages that are needed for some things only."""

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """The module, or an `ImportError` that names the extra of gdfx that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f'{module.split(".")[0]} is needed for this: pip install "gdfx[{extra}]"') from None
