"""Ctrl-C and the polite request to end, noticed between steps."""

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """While it is entered, SIGINT and SIGTERM only set `requested`; a second SIGINT raises `KeyboardInterrupt`.

    Outside of the main thread, where Python delivers no signals, it does nothing.
    """

    def __init__(self):
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Interrupts":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if (before := signal.getsignal(number)) is not None:  # None: not set from Python, nor to be
                    self._before[number] = before
                    signal.signal(number, self._request)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
