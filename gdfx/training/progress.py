"""The progress bar, for those who have tqdm."""

import importlib.util
from typing import Any

from ..extras import require


def progress_bar(total: int | None, show: bool | None, what: str) -> Any:
    """A tqdm bar over `total` steps, for a `with`; a silent one for `show=False`, and for None where there is no tqdm.

    `shown` says which.
    """
    if show is None:
        show = importlib.util.find_spec("tqdm") is not None
    if not show:
        return _Silent()
    bar = require("tqdm.auto", "examples").tqdm(total=total, desc=what, unit=" steps", dynamic_ncols=True)
    bar.shown = True
    return bar


class _Silent:
    shown, total, n = False, 0, 0

    def update(self, n: int) -> None: ...
    def set_postfix_str(self, text: str, refresh: bool = True) -> None: ...
    def __enter__(self) -> "_Silent":
        return self

    def __exit__(self, *_: Any) -> None: ...
