"""The progress bar, for those who have tqdm."""

import importlib.util
from typing import Any

from ..extras import require


def progress_bar(total: int, show: bool | None, what: str) -> Any:
    """A tqdm bar over `total` steps: with `show=None` only where tqdm is installed, with False a silent one."""
    if show is None:
        show = importlib.util.find_spec("tqdm") is not None
    if not show:
        return _Silent()
    return require("tqdm.auto", "examples").tqdm(total=total, desc=what, unit=" steps", dynamic_ncols=True)


class _Silent:
    def update(self, n: int) -> None: ...
    def set_postfix_str(self, text: str, refresh: bool = True) -> None: ...
    def close(self) -> None: ...
