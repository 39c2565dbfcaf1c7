"""Texts that are written together: they come and go between steps, and each stands at a position of its own."""

import dataclasses
import itertools
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from gpt2lab.errors import InputError
from gpt2lab.generation.sampling import Sampling
from gpt2lab.model import GPT2, KeyValueCache

# A prompt is read in chunks, so that memory does not grow with its length.
_PREFILL_CHUNK = 512


class Token(NamedTuple):
    """One token that was written.

    Attributes:
        row: of which text.
        id: the token.
        logprob: its logarithmic probability by the model itself: at temperature 1 and without filters.
        finished: why it is the last one of its text ("stop": it ends a stop sequence; "length": there are as many as
            were asked for), or None.
    """

    row: int
    id: int
    logprob: float
    finished: Literal["stop", "length"] | None


class Engine:
    """Writes several texts at once. What it writes into one does not depend on the others (but where two tokens are
    as likely to within a rounding error).

    A model that is endless goes on for ever in constant memory. Any other one, when a text fills its context, drops the
    oldest half of that text and reads the rest again, and the engine warns once.

    Args:
        model: on any device; it is in evaluation mode while a step is made.
        max_rows: how many texts at once; memory for all of them is taken at once.

    Examples:
        >>> engine = Engine(model, max_rows=16)
        >>> row = engine.add(ids, Sampling(temperature=0.8, seed=1), max_tokens=200, stop=[[0]])
        >>> while engine.rows:
        ...     for token in engine.step():
        ...         print(token.row, token.id, token.logprob, token.finished)
    """

    def __init__(self, model: GPT2, max_rows: int = 16) -> None:
        if max_rows < 1:
            raise InputError(f"max_rows is {max_rows}; it has to be 1 or more")
        if model.config.vocab_size == 0:
            raise InputError("the model has no vocabulary yet: train it first, or make it with vocab_size=…")
        self.model = model
        self.max_rows = max_rows
        self._context = None if model.endless else model.config.max_seq_len
        self._cache = KeyValueCache(model, max_rows)
        self._texts: list[_Text] = []  # in the order of their rows in the cache, without gaps
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
    ) -> int:
        """Begin a text; the next step reads its prompt and writes its first token.

        Args:
            ids: the prompt, integers (T,), T at least 1.
            sampling: how tokens are drawn; None: from the model's own distribution. Its seed is this text's own.
            max_tokens: how many are written at most.
            stop: sequences of ids, such as ``[[tokenizer.stoi["<|endoftext|>"]]]``; the text ends with the token that
                completes one of them.

        Returns:
            the row: what ``token.row`` will be.

        Raises:
            InputError: all rows are taken, the prompt is empty, an id is not in the vocabulary, or ``max_tokens`` is
                not 1 or more.
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
        stops = [[int(id_) for id_ in sequence] for sequence in stop]
        if [] in stops:
            raise InputError("a stop sequence is empty; it has to be a list of ids, at least one")
        vocab_size = self.model.config.vocab_size
        for what, given in (("the prompt", prompt.tolist()), *(("a stop sequence", sequence) for sequence in stops)):
            if strange := [id_ for id_ in given if not 0 <= id_ < vocab_size]:
                raise InputError(f"{what} has the id {strange[0]}, but the model knows 0 to {vocab_size - 1}")
        self._cache.clear(len(self._texts))
        text = _Text(self._added, prompt, sampling or Sampling(), max_tokens, stops, self.model)
        self._texts.append(text)
        self._added += 1
        return text.row

    def step(self) -> list[Token]:
        """Write one token into every row; those that are finished leave.

        Raises:
            InputError: the model's logits are not numbers. After that, or any other interruption, all rows are gone.
        """
        if not self._texts:
            return []
        try:
            return self._step()
        except BaseException:  # some rows have been read and others have not
            self._texts.clear()
            raise

    def _step(self) -> list[Token]:
        with torch.no_grad(), self.model.evaluating() if self.model.training else nullcontext():
            self._make_room()
            logits = self._read()  # (B, V)
            ids = self._choose(logits)  # (B,)
            wide = torch.promote_types(logits.dtype, torch.float32)
            logprobs = logits.log_softmax(-1, dtype=wide).gather(1, ids[:, None])[:, 0]
        written = zip(self._texts, ids.tolist(), logprobs.tolist(), strict=True)
        tokens = [text.write(id_, logprob) for text, id_, logprob in written]
        for place in reversed(range(len(tokens))):
            if tokens[place].finished:
                self._leave(place)
        return sorted(tokens)

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

    def _read(self) -> Tensor:
        """Read what every text has not read yet; returns the logits behind it, (B, V).

        Neighbours that have as many tokens to read are read together: one of each, when all are writing.
        """
        logits, first = [], 0
        for _, group in itertools.groupby(self._texts, lambda text: len(text.unread)):
            ids = torch.tensor([text.unread for text in group], device=self.model.device)  # (B, T)
            last = first + len(ids)
            cache = self._cache if last - first == self.max_rows else self._cache[first:last]
            for chunk in torch.split(ids, _PREFILL_CHUNK, dim=1):
                behind = self.model(chunk, cache=cache, last_only=True)  # (B, 1, V)
            logits.append(behind[:, 0])
            first = last
        return torch.cat(logits)

    def _choose(self, logits: Tensor) -> Tensor:
        """A token for each text, int64 (B,); those that draw in the same way are drawn at once."""
        ways: dict[Sampling, list[int]] = {}
        for place, text in enumerate(self._texts):
            ways.setdefault(text.way, []).append(place)
        ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        for way, places in ways.items():
            texts = [self._texts[place] for place in places]
            occurred = [text.seen for text in texts if text.seen is not None]
            seen = torch.stack(occurred) if occurred else None
            ids[places] = way.choose(logits[places], [text.generator for text in texts], seen)
        return ids


class _Text:
    """One text that is written: what the model has still to read of it, and how it goes on."""

    def __init__(
        self, row: int, prompt: Tensor, sampling: Sampling, max_tokens: int, stop: list[list[int]], model: GPT2
    ) -> None:
        self.row = row
        self.way = dataclasses.replace(sampling, seed=0)  # texts that draw in the same way are drawn at once
        (self.generator,) = sampling.generators(1)
        self.left = max_tokens
        self.stop = stop
        self.newest: deque[int] = deque(maxlen=max(map(len, stop), default=0))
        self.seen: Tensor | None = None  # the tokens that occurred, bool (V,), if anyone asks
        if sampling.repetition_penalty != 1:
            self.seen = torch.zeros(model.config.vocab_size, dtype=torch.bool, device=model.device)
            self.seen[prompt.to(model.device)] = True
        # What the next logits depend on, for a model that will have to read it again.
        self.history: list[int] = [] if model.endless else prompt[-model.config.max_seq_len :].tolist()
        self.unread: list[int] = self.history.copy() or prompt.tolist()
        self.endless = model.endless

    def write(self, id_: int, logprob: float) -> Token:
        """Add a token, and say whether it is the last one."""
        self.left -= 1
        self.newest.append(id_)
        self.unread = [id_]
        if not self.endless:
            self.history.append(id_)
        if self.seen is not None:
            self.seen[id_] = True
        newest = list(self.newest)
        stopped = any(newest[-len(sequence) :] == sequence for sequence in self.stop)
        return Token(self.row, id_, logprob, "stop" if stopped else "length" if self.left == 0 else None)
