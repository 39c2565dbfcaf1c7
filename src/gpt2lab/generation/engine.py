"""Texts that are written together: they come and go between steps, and each stands at a position of its own."""

import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext, suppress
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gpt2lab.errors import InputError
from gpt2lab.generation.sampling import Sampling
from gpt2lab.generation.step import Drawn, EagerStep, NativeStep, Text, unable
from gpt2lab.model import GPT2, KeyValueCache
from gpt2lab.native.library import library
from gpt2lab.runs.settings import Step, Weights


class Token(NamedTuple):
    """One token that was written.

    Attributes:
        row: of which text.
        id: the token.
        logprob: its logarithmic probability by the model itself: at temperature 1 and without filters.
        finished: why it is the last one of its text ("stop": it ends a stop sequence; "length": there are as many as
            were asked for), or None.
        top: the tokens that were likeliest by the model itself, with their logarithmic probabilities, the likeliest
            first: as many as its text asked for.
    """

    row: int
    id: int
    logprob: float
    finished: Literal["stop", "length"] | None
    top: tuple[tuple[int, float], ...] = ()


class Engine:
    """Writes several texts at once. What it writes into one does not depend on the others (but where two tokens are
    as likely to within a rounding error).

    A model that is endless goes on for ever in constant memory. Any other one, when a text fills its context, drops the
    oldest half of that text and reads the rest again, and the engine warns once.

    Args:
        model: on any device; it is in evaluation mode while a step is made.
        max_rows: how many texts at once; memory for all of them is taken at once.
        step: ``"eager"``: the model, operation by operation; ``"native"``: compiled for this machine, which is built
            first if need be; ``"auto"``: native where it can be had and the model has nothing but built-in parts, and
            eager until it is built.
        weights: precision in which the native step stores the matrices; the prompt is read in the model's own.
            ``"int8"`` has a scale for each output. None: as the model is.

    Raises:
        InputError: no row, a model without a vocabulary, or a native step that cannot be had.

    Examples:
        >>> engine = Engine(model, max_rows=16)
        >>> row = engine.add(ids, Sampling(temperature=0.8, seed=1), max_tokens=200, stop=[[0]])
        >>> while engine.rows:
        ...     for token in engine.step():
        ...         print(token.row, token.id, token.logprob, token.finished)
    """

    def __init__(self, model: GPT2, max_rows: int = 16, *, step: Step = "auto", weights: Weights | None = None) -> None:
        if max_rows < 1:
            raise InputError(f"max_rows is {max_rows}; it has to be 1 or more")
        if model.config.vocab_size == 0:
            raise InputError("the model has no vocabulary yet: train it first, or make it with vocab_size=…")
        self.model = model
        self.max_rows = max_rows
        self._context = None if model.endless else model.config.max_seq_len
        check_step(model, step, weights)
        self._asked: Step = "native" if weights is not None else step
        self._weights: Weights = weights or "float32"
        self._cache = KeyValueCache(model, max_rows)
        self._eager = EagerStep(model, self._cache)
        self._native: NativeStep | None = None
        if self._asked == "native":
            self._native = NativeStep(model, self._cache, library("writing").wait(), self._weights)
        self._texts: list[Text] = []  # in the order of their rows in the cache, without gaps
        self._added = 0
        self._dropped = False

    @property
    def rows(self) -> list[int]:
        """The rows that still write."""
        return sorted(text.row for text in self._texts)

    def add(
        self,
        ids: Tensor | Sequence[int],
        sampling: Sampling | None = None,
        *,
        max_tokens: int,
        stop: Iterable[Sequence[int]] = (),
        top: int = 0,
    ) -> int:
        """Begin a text; the next step reads its prompt and writes its first token.

        Args:
            ids: the prompt, integers (T,), T at least 1.
            sampling: how tokens are drawn; None: from the model's own distribution. Its seed is this text's own.
            max_tokens: how many are written at most.
            stop: sequences of ids, such as ``[[tokenizer.stoi["<|endoftext|>"]]]``; the text ends with the token that
                completes one of them.
            top: how many of the likeliest tokens are told with each; then a step is one token at a time.

        Returns:
            the row: what ``token.row`` will be.

        Raises:
            InputError: all rows are taken, the prompt is empty, an id is not in the vocabulary, ``max_tokens`` is
                not 1 or more, or ``top`` is below 0.
        """
        if len(self._texts) == self.max_rows:
            raise InputError(f"all {self.max_rows} rows are taken: wait until one ends, remove one, or raise max_rows")
        prompt = torch.as_tensor(ids)
        if prompt.dim() != 1:
            raise InputError(f"the prompt has the shape {tuple(prompt.shape)}; it has to be (T,)")
        if len(prompt) == 0:
            raise InputError("a prompt is empty; give at least one token, such as a line break")
        if prompt.is_floating_point():
            raise InputError("the prompt has to be ids, which are whole numbers")
        if max_tokens < 1:
            raise InputError(f"max_tokens is {max_tokens}; it has to be 1 or more")
        if top < 0:
            raise InputError(f"top is {top}; it has to be 0 or more")
        stops = [[int(id_) for id_ in sequence] for sequence in stop]
        if [] in stops:
            raise InputError("a stop sequence is empty; it has to be a list of ids, at least one")
        vocab_size = self.model.config.vocab_size
        for what, given in (("the prompt", prompt.tolist()), *(("a stop sequence", sequence) for sequence in stops)):
            if strange := [id_ for id_ in given if not 0 <= id_ < vocab_size]:
                raise InputError(f"{what} has the id {strange[0]}, but the model knows 0 to {vocab_size - 1}")
        self._cache.clear(len(self._texts))
        place = len(self._texts)
        text = Text(self._added, place, prompt, sampling or Sampling(), max_tokens, stops, self.model, top)
        self._texts.append(text)
        self._added += 1
        return text.row

    def step(self, most: int = 1) -> list[Token]:
        """Write one token into every row, or several at once; rows that are finished leave.

        Args:
            most: how many at most; more than one are written where nothing can happen in between.

        Returns:
            the tokens in the order in which they were written, and of one time in the order of the rows.

        Raises:
            InputError: the model's logits are not numbers. After that, or any other interruption, all rows are gone.
        """
        if not self._texts:
            return []
        try:
            return self._step(most)
        except BaseException:  # some rows have been read and others have not
            self._texts.clear()
            raise

    def _step(self, most: int) -> list[Token]:
        self._make_room()
        ready = [text for text in self._texts if len(text.unread) == 1]
        native = self._native_step() if ready else None  # the weights are not copied before the first token is there
        if native is None:
            ready = []
        others = [text for text in self._texts if text not in ready]
        drawn: dict[Text, Drawn] = {}
        if others:
            with torch.no_grad(), self.model.evaluating() if self.model.training else nullcontext():
                drawn.update(zip(others, self._eager.write(others), strict=True))
        if native is not None:
            room = [text.left for text in ready]
            room += [self._context + 1 - len(text.history) for text in ready if self._context is not None]
            alone = bool(others) or any(text.top for text in ready)
            drawn.update(zip(ready, native.write(ready, 1 if alone else min(most, *room)), strict=True))
        tokens, in_order = [], sorted(self._texts, key=lambda text: text.row)
        for time in range(max(map(len, drawn.values()))):
            for text in in_order:
                if text.finished is None:
                    id_, logprob, top = drawn[text][time]
                    tokens.append(Token(text.row, id_, logprob, text.write(id_), top))
        for text in reversed(self._texts.copy()):
            if text.finished is not None:
                self._leave(text.place)
        return tokens

    def _native_step(self) -> NativeStep | None:
        """The native step, if it can write now."""
        if self._asked == "eager" or torch.is_autocast_enabled("cpu"):
            return None
        if any(layer.read_in - {torch.float32} for layer in self._cache.layers):
            return None
        if self._native is None or not self._native.source.is_the_same():
            self._native = None
            if unable(self.model) is None and (built := library("writing").now()) is not None:
                self._native = NativeStep(self.model, self._cache, built, self._weights)
            elif self._asked == "native":
                check_step(self.model, self._asked, None)
        return self._native

    def remove(self, row: int) -> None:
        """End a text, at any time; of one that has ended by itself nothing is left to do.

        Raises:
            InputError: there never was such a row.
        """
        if not 0 <= row < self._added:
            raise InputError(f"there is no row {row}: add() returned 0 to {self._added - 1} so far")
        for place, text in enumerate(self._texts):
            if text.row == row:
                self._leave(place)
                return

    def _leave(self, place: int) -> None:
        """The last text takes the place of one that ends."""
        last = self._texts.pop()
        if place < len(self._texts):
            self._cache.copy(len(self._texts), place)
            self._texts[place] = last
            last.place = place

    def _make_room(self) -> None:
        """Of each text that has outgrown the context only the newest half is kept, and has to be read again."""
        for place, text in enumerate(self._texts):
            if self._context is not None and len(text.history) > self._context:
                if not self._dropped:
                    warnings.warn(
                        f"the context of {self._context} tokens is full: the oldest half is dropped each time this "
                        "happens (a model with RoPE and a window in every layer would go on without)",
                        stacklevel=4,
                    )
                self._dropped = True
                text.history = text.history[-((self._context + 1) // 2) :]
                text.unread = text.history.copy()
                self._cache.clear(place)


def check_step(model: GPT2, step: Step, weights: Weights | None) -> None:
    """Refuse what the native step is asked for and cannot do.

    Raises:
        InputError: with the reason.
    """
    if weights is not None and step == "eager":
        raise InputError(f"weights={weights!r} are the native step's; leave out step='eager', or the weights")
    if (weights is not None or step == "native") and (reason := unable(model)):
        what = "the native step cannot be used" if weights is None else f"the weights cannot be stored in {weights}"
        raise InputError(f"{what}: {reason}")


def common_step(models: Iterable[GPT2], compiling: bool = True) -> Step:
    """The fastest step in which all of these models can write.

    Args:
        models: they.
        compiling: whether the native step may be compiled for it, which takes seconds; else it counts if it is there.
    """
    with suppress(InputError):
        if not any(map(unable, models)) and (library("writing").wait() if compiling else library("writing").there()):
            return "native"
    return "eager"
