"""Signals that end a process: the run stops after its step, and is written before it ends."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["Interrupted", "Signals"]

_NAMES = ("SIGINT", "SIGTERM", "SIGUSR1")  # Ctrl-C, a cluster's end, and Slurm's warning of it


class Interrupted(KeyboardInterrupt):
    """A signal has been noted, and the step during which it came has ended."""


class Signals:
    """Note signals inside the block instead of ending at once; a second one ends at once.

    Where it is `wanted`, and in the main thread alone, for others have no signals. Those that are
    ignored stay so, and former handlers come back at the end of the block.
    """

    def __init__(self, wanted: bool) -> None:
        self.wanted = wanted and threading.current_thread() is threading.main_thread()
        self.caught: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for name in _NAMES if self.wanted else ():
            number = getattr(signal, name, None)  # there is no SIGUSR1 on Windows
            # None is one that Python has not set and cannot set again.
            if number is not None and signal.getsignal(number) not in (None, signal.SIG_IGN):
                self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.caught is not None:
            self.end(f"a second {signal.Signals(number).name}")
        self.caught = number

    @property
    def name(self) -> str:
        """Name of the signal that was caught."""
        return "" if self.caught is None else signal.Signals(self.caught).name

    def raise_if_caught(self) -> None:
        """End the training where a signal has come."""
        if self.caught is not None:
            raise Interrupted

    def end(self, message: str) -> None:
        """End as the signal asks: Ctrl-C as ever, and a process by an exit status of 128 + number.

        What a user has set to handle the signal is called first.
        """
        number = signal.SIGINT if self.caught is None else self.caught
        former = self._former.get(number) if self.caught is not None else None
        if callable(former) and former is not signal.default_int_handler:
            former(number, None)
        if number == signal.SIGINT:
            raise KeyboardInterrupt(message)
        raise SystemExit(128 + number)
