"""Signals that a training heeds when its step is done."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self


class Signals:
    """Which signal asks the training to stop, and whether one asked for a checkpoint.

    While it is entered, SIGINT, SIGTERM and SIGHUP (of a terminal that closes; not under nohup) are noted instead of
    ending the process, and SIGUSR1, too. A second one has its usual effect, but not under torchrun, which passes on
    what may have reached all processes already. Windows has neither SIGHUP nor SIGUSR1.
    """

    HANGUP = getattr(signal, "SIGHUP", None)
    SAVING = getattr(signal, "SIGUSR1", None)
    STOPPING = (signal.SIGINT, signal.SIGTERM, *filter(None, [HANGUP]))

    def __init__(self) -> None:
        self.stop = 0
        self.save = False
        self.previous: dict[signal.Signals, Any] = {}
        self.terminals: list[int] = []

    def __enter__(self) -> Self:
        self.terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        if threading.current_thread() is threading.main_thread():  # no other one may set handlers
            for number in (*self.STOPPING, *filter(None, [self.SAVING])):
                if number != self.HANGUP or signal.getsignal(number) != signal.SIG_IGN:
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
        if number == self.SAVING:
            self.save = True
        else:
            self.stop = number
            if number == self.HANGUP:  # what is printed from now on would be an error, and nobody sees it
                for descriptor in self.terminals:
                    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
            if "RANK" not in os.environ:
                self.give_back(*self.STOPPING)
