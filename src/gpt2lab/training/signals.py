"""Signals that a training heeds when its step is done."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self


class Signals:
    """Which signal asks the training to stop, and whether one asked for a checkpoint.

    While it is entered, SIGINT and SIGTERM are noted instead of ending the process, and SIGUSR1, too. A second one has
    its usual effect, but not under torchrun, which passes on what may have reached all processes already.
    """

    def __init__(self) -> None:
        self.stop = 0
        self.save = False
        self.previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # no other one may set handlers
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
                self.previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self.give_back(*self.previous)

    def give_back(self, *numbers: signal.Signals) -> None:
        """Let signals do what they did before."""
        for number in numbers:
            if number in self.previous:
                signal.signal(number, self.previous.pop(number))

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGUSR1:
            self.save = True
        else:
            self.stop = number
            if "RANK" not in os.environ:
                self.give_back(signal.SIGINT, signal.SIGTERM)
