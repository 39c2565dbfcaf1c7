"""Who writes next: one thread makes the steps of all models in turn, and texts join and leave between two steps.

    requests ──submit──▶ waiting ──add──▶ rows of an engine ──step──▶ pieces of text ──deliver──▶ requests

The thread never waits for a reader: pieces stay in the request's own mailbox, and limits bound how many there are.
"""

import logging
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, TypeVar

from gpt2lab.data import Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.generation import Engine, Sampling
from gpt2lab.generation.engine import Token
from gpt2lab.generation.text import Decoder
from gpt2lab.model import GPT2

T = TypeVar("T")
# Of a step that writes several tokens at once; the native step makes fewer, so that a call lasts milliseconds.
_MOST = 64

Finished = Literal["stop", "length", "error"]


class BusyError(Exception):
    """As many texts wait as may wait."""


class ClosedError(Exception):
    """The server is about to stop."""


@dataclass(frozen=True)
class Piece:
    """What was added to a text.

    Attributes:
        text: of the characters that are complete; it ends before a stop.
        tokens: that were written for it.
        finished: why it is the last piece: ``"stop"``, ``"length"``, or ``"error"``; else None.
        error: what went wrong.
    """

    text: str = ""
    tokens: tuple[Token, ...] = ()
    finished: Finished | None = None
    error: str = ""

    def __add__(self, later: "Piece") -> "Piece":
        return Piece(self.text + later.text, self.tokens + later.tokens, later.finished, later.error)


@dataclass(eq=False)
class Job:
    """A text that is to be written.

    Attributes:
        ids: the prompt.
        decoder: of its tokens, which knows the texts that end it.
        stop_ids: the tokens that do.
        top: how many of the likeliest tokens are told with each.
        deliver: what takes its pieces, in the scheduler's thread.
        cancelled: whether nobody wants it any more.
    """

    ids: Sequence[int]
    sampling: Sampling
    max_tokens: int
    decoder: Decoder
    stop_ids: Sequence[int]
    top: int
    deliver: Callable[[Piece], None]
    cancelled: bool = False


@dataclass(eq=False)
class Served:
    """A model, and the texts that it writes.

    Attributes:
        waiting: texts for which there is no row yet.
        written: how many tokens it has written so far.
    """

    name: str
    model: GPT2
    tokenizer: Tokenizer
    engine: Engine
    waiting: deque[Job] = field(default_factory=deque)
    running: dict[int, Job] = field(default_factory=dict)
    written: int = 0

    def step(self, busy: bool) -> None:
        """End texts that nobody wants any more, begin those that wait, and write.

        Args:
            busy: others wait for the thread, so that one token at a time is written.
        """
        for row, job in [*self.running.items()]:
            if job.cancelled:
                self.engine.remove(row)
                del self.running[row]
        for job in [job for job in self.waiting if job.cancelled]:
            self.waiting.remove(job)
        while self.waiting and len(self.running) < self.engine.max_rows:
            self._begin(self.waiting.popleft())
        if not self.running:
            return
        try:
            tokens = self.engine.step(1 if busy or self.waiting else _MOST)
        except Exception as error:  # all rows of this engine are gone; those of other models are not
            expected = isinstance(error, InputError)
            if not expected:
                logging.getLogger("gpt2lab").exception("a step of %s failed", self.name)
            self.fail(str(error) if expected else "the server has made a mistake; its log tells more")
            return
        self.written += len(tokens)
        by_row: dict[int, list[Token]] = {}
        for token in tokens:
            by_row.setdefault(token.row, []).append(token)
        for row, own in by_row.items():
            self._tell(row, own)

    def _begin(self, job: Job) -> None:
        stop = [[id_] for id_ in job.stop_ids]
        try:
            row = self.engine.add(job.ids, job.sampling, max_tokens=job.max_tokens, stop=stop, top=job.top)
        except InputError as error:
            job.deliver(Piece(finished="error", error=str(error)))
        else:
            self.running[row] = job

    def _tell(self, row: int, tokens: Iterable[Token]) -> None:
        """Give a text what was written for it."""
        job = self.running[row]
        decoder = job.decoder
        text, told, finished = "", [], None
        for token in tokens:
            finished = token.finished
            if finished == "stop":  # the token that ends it is not part of it
                break
            text += decoder.add(token.id)
            told.append(token)
            if decoder.ended:
                finished = "stop"
                break
        if finished is not None:
            text += decoder.end()
            self.engine.remove(row)
            del self.running[row]
        job.deliver(Piece(text, tuple(told), finished))

    def fail(self, message: str) -> None:
        """End all texts, those that wait, too."""
        for job in (*self.running.values(), *self.waiting):
            job.deliver(Piece(finished="error", error=message))
        for row in self.running:
            self.engine.remove(row)
        self.running.clear()
        self.waiting.clear()


class Scheduler:
    """The thread that writes.

    Args:
        models: by their names.
        max_waiting: how many texts may wait, of all models together.
    """

    def __init__(self, models: Iterable[Served], max_waiting: int) -> None:
        self.models = {served.name: served for served in models}
        self._max_waiting = max_waiting
        self._new: deque[tuple[Served, Job]] = deque()
        self._asked: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self._changed = threading.Condition()
        self._closed = self._ended = False
        self._thread = threading.Thread(target=self._run, name="gpt2lab-scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """How many texts, and questions, wait."""
        return len(self._new) + len(self._asked) + sum(len(served.waiting) for served in self.models.values())

    @property
    def alive(self) -> bool:
        """Whether the thread is at work."""
        return self._thread.is_alive()

    def submit(self, served: Served, jobs: Sequence[Job]) -> None:
        """Let texts be written as soon as there are rows for them.

        Raises:
            BusyError: so many cannot wait.
            ClosedError: the server is about to stop.
        """
        with self._changed:
            self._check(len(jobs) - served.engine.max_rows + len(served.running))
            self._new.extend((served, job) for job in jobs)
            self._changed.notify()

    def ask(self, question: Callable[[], T]) -> "Future[T]":
        """Call something between two steps, when nothing else uses the models.

        Raises:
            BusyError, ClosedError: as :meth:`submit`.
        """
        answer: Future[T] = Future()
        with self._changed:
            self._check(1)
            self._asked.append((question, answer))  # type: ignore[arg-type]
            self._changed.notify()
        return answer

    def _check(self, number: int) -> None:
        if self._closed:
            raise ClosedError
        if self.waiting + number > self._max_waiting:
            raise BusyError

    def close(self) -> None:
        """Take nothing new; what was begun is finished."""
        with self._changed:
            self._closed = True
            self._changed.notify()

    def end(self) -> None:
        """End all texts now, and the thread."""
        with self._changed:
            self._closed = self._ended = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        with warnings.catch_warnings(action="ignore"):  # that a context is full is no news for a server
            try:
                while self._turn():
                    pass
            finally:
                with self._changed:
                    self._closed = True
                    self._take()
                    for _, answer in self._asked:
                        answer.set_exception(ClosedError())
                    self._asked.clear()
                for served in self.models.values():
                    served.fail("the server has stopped")

    def _turn(self) -> bool:
        """A step of every model that has something to write; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._ended or self._new or self._asked or self._at_work())
        if self._ended:
            return False
        self._take()
        if self._asked:  # one at a time, so that texts go on between them
            question, answer = self._asked.popleft()
            if answer.set_running_or_notify_cancel():
                try:
                    answer.set_result(question())
                except Exception as error:
                    answer.set_exception(error)
        at_work = self._at_work()
        for served in at_work:
            served.step(busy=len(at_work) > 1)
        return True

    def _take(self) -> None:
        while self._new:
            served, job = self._new.popleft()
            served.waiting.append(job)

    def _at_work(self) -> list[Served]:
        return [served for served in self.models.values() if served.running or served.waiting]
