"""Packages that are needed for some things only."""

import importlib
from typing import Any


def require(module: str, extra: str) -> Any:
    """The module, or an `ImportError` that names the extra of gdfx that brings it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise ImportError(f'{module.split(".")[0]} is needed for this: pip install "gdfx[{extra}]"') from None


def new_figure(path: Any, **kwargs: Any) -> Any:
    """A matplotlib figure: one of pyplot's, for `plt.show()`, unless it is to be written to `path`."""
    if path is None:
        return require("matplotlib.pyplot", "examples").figure(**kwargs)
    return require("matplotlib.figure", "examples").Figure(**kwargs)  # which pyplot does not keep open
