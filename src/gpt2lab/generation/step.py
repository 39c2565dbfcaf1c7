"""A step: what all texts that are being written read and draw at once.

The eager step is the model itself, operation by operation, and does everything: any device, any mechanism. The native
step (``writing.cpp``) computes what the built-in switches say, in one call for many tokens. Both read and write the
same cache, so a text goes on with one where it was left by the other.
"""

import ctypes
import dataclasses
import itertools
import math
import time
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from gpt2lab.errors import InputError
from gpt2lab.generation.sampling import NOT_NUMBERS, Sampling, log_probabilities, top_logprobs
from gpt2lab.model import GPT2, KeyValueCache
from gpt2lab.model.arithmetic import foreign
from gpt2lab.model.fused import ACTIVATIONS
from gpt2lab.native.calling import Double, Int, Pointer, address
from gpt2lab.runs.settings import Weights

# A prompt is read in chunks, so that memory does not grow with its length.
_PREFILL_CHUNK = 1024
# A native call lasts about so many seconds at most (but at least a token): Ctrl-C is heard behind it.
_LONGEST_CALL = 0.008
# How often each number of threads is tried.
_ROUNDS = 4

_BITS: dict[Weights, int] = {"float32": 32, "bfloat16": 16, "int8": 8}


class Text:
    """One text that is written: what the model has still to read of it, and how it goes on.

    Attributes:
        place: its row of the cache.
        top: how many of the likeliest tokens are told with each.
        finished: why it has ended, or None.
    """

    def __init__(
        self,
        row: int,
        place: int,
        prompt: Tensor,
        sampling: Sampling,
        max_tokens: int,
        stop: list[list[int]],
        model: GPT2,
        top: int = 0,
    ) -> None:
        self.row, self.place, self.top = row, place, top
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
        self.finished: Literal["stop", "length"] | None = None

    def write(self, id_: int) -> Literal["stop", "length"] | None:
        """Add a token, and say whether it is the last one, and why."""
        self.left -= 1
        self.unread = [id_]
        if not self.endless:
            self.history.append(id_)
        if self.seen is not None:
            self.seen[id_] = True
        self.newest.append(id_)
        newest = list(self.newest)
        if any(newest[-len(sequence) :] == sequence for sequence in self.stop):
            self.finished = "stop"
        elif self.left == 0:
            self.finished = "length"
        return self.finished


# What was drawn for a text, token after token: an id, its logarithmic probability, and the likeliest with theirs.
Drawn = list[tuple[int, float, tuple[tuple[int, float], ...]]]


def likeliest(texts: Sequence[Text], logits: Tensor) -> list[tuple[tuple[int, float], ...]]:
    """For each text as many of the likeliest tokens as it asks for, with their logarithmic probabilities.

    Args:
        texts: B texts.
        logits: behind them, (B, V).
    """
    found: list[tuple[tuple[int, float], ...]] = [()] * len(texts)
    asking = [number for number, text in enumerate(texts) if text.top]
    if asking:
        told = top_logprobs(log_probabilities(logits[asking]), max(texts[number].top for number in asking))
        for number, top in zip(asking, told, strict=True):
            found[number] = top[: texts[number].top]
    return found


class EagerStep:
    """The model, operation by operation."""

    def __init__(self, model: GPT2, cache: KeyValueCache) -> None:
        self.model, self._cache = model, cache

    def write(self, texts: Sequence[Text]) -> list[Drawn]:
        """Read what each text has not read yet, and draw a token for it.

        Args:
            texts: in the order of their places.
        """
        logits = self._read(texts)  # (B, V)
        ids = self._choose(texts, logits)  # (B,)
        logprobs = log_probabilities(logits).gather(1, ids[:, None])[:, 0]
        tops = likeliest(texts, logits)
        return [[drawn] for drawn in zip(ids.tolist(), logprobs.tolist(), tops, strict=True)]

    def _read(self, texts: Sequence[Text]) -> Tensor:
        """Logits behind what is read, (B, V).

        Neighbours that have as many tokens to read are read together: one of each, when all are writing.
        """
        logits = []
        for _, group in itertools.groupby(
            enumerate(texts), lambda text: (text[1].place - text[0], len(text[1].unread))
        ):
            together = [text for _, text in group]
            ids = torch.tensor([text.unread for text in together], device=self.model.device)  # (B, T)
            first, last = together[0].place, together[-1].place + 1
            cache = self._cache if last - first == len(self._cache.lengths) else self._cache[first:last]
            for chunk in torch.split(ids, _PREFILL_CHUNK, dim=1):
                behind = self.model(chunk, cache=cache, last_only=True)  # (B, 1, V)
            logits.append(behind[:, 0])
        return torch.cat(logits)

    def _choose(self, texts: Sequence[Text], logits: Tensor) -> Tensor:
        """A token for each text, int64 (B,); those that draw in the same way are drawn at once."""
        ways: dict[Sampling, list[int]] = {}
        for number, text in enumerate(texts):
            ways.setdefault(text.way, []).append(number)
        ids = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
        for way, numbers in ways.items():
            alike = [texts[number] for number in numbers]
            occurred = [text.seen for text in alike if text.seen is not None]
            seen = torch.stack(occurred) if occurred else None
            ids[numbers] = way.choose(logits[numbers], [text.generator for text in alike], seen)
        return ids


# The structures of writing.cpp.


class _Linear(ctypes.Structure):
    _fields_ = [("weight", Pointer), ("bias", Pointer), ("inputs", Int), ("outputs", Int)]


class _Layer(ctypes.Structure):
    _fields_ = [
        *((name, Pointer) for name in ("attention_norm", "attention_norm_bias")),
        *((name, Pointer) for name in ("feed_forward_norm", "feed_forward_norm_bias")),
        *((name, Pointer) for name in ("query_norm", "key_norm", "sinks")),
        *((name, _Linear) for name in ("query_key_value", "output", "expand", "contract")),
        *((name, Int) for name in ("kv_heads", "rotates", "slots")),
        *((name, Pointer) for name in ("k", "v", "positions")),
    ]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, Int) for name in ("width", "heads", "head_dim", "hidden", "vocabulary", "num_layers", "rows")),
        *((name, Int) for name in ("rotary_dim", "activation", "bits", "threads")),
        *((name, Double) for name in ("theta", "epsilon")),
        *((name, Pointer) for name in ("tokens", "learned", "final_norm", "final_norm_bias")),
        ("unembed", _Linear),
        ("layers", ctypes.POINTER(_Layer)),
    ]


_ROW = np.dtype(
    [
        *((name, np.int64) for name in ("place", "position", "token", "top_k")),
        *((name, np.float64) for name in ("temperature", "top_p", "min_p", "penalty")),
        *((name, np.uint64) for name in ("seen", "noise")),
    ]
)


def unable(model: GPT2) -> str | None:
    """Why the native step cannot write with this model, or None."""
    if model.mechanism_class is not None:
        return f"the attention {model.mechanism_class.__name__} is not a built-in one, which only the eager step runs"
    return foreign(model)


class _Source:
    """The modules and parameters that a native step was made of. It is asked at every call, so it has to be quick."""

    def __init__(self, model: GPT2) -> None:
        modules, self._parameters = list(model.modules()), list(model.parameters())
        self._own = [vars(module) for module in modules]
        self._dicts = [parts for module in modules for parts in (module._modules, module._parameters) if parts]
        self._counted = [parameter for parameter in self._parameters if not parameter.is_inference()]
        self._then = self._now()

    def _now(self) -> list[object]:
        return [
            RemovableHandle.next_id,  # grows with every hook
            [id(part) for parts in self._dicts for part in parts.values()],
            [parameter.data_ptr() for parameter in self._parameters],
            [parameter._version for parameter in self._counted],
            any("forward" in own for own in self._own),
        ]

    def is_the_same(self) -> bool:
        """Whether they are still in place, without new hooks, and nobody has written to them (but past autograd)."""
        return self._now() == self._then


class NativeStep:
    """The model's arithmetic in one call for several tokens.

    Args:
        model: on the CPU, in float32 (:func:`unable` says what else).
        cache: whose rows are written to.
        library: compiled from writing.cpp.
        weights: precision in which the matrices are stored and read.

    Attributes:
        source: what it was made of.
        logits: float32 (rows, V), of the latest step.
    """

    def __init__(self, model: GPT2, cache: KeyValueCache, library: ctypes.CDLL, weights: Weights = "float32") -> None:
        self._cache, self._library = cache, library
        self._most_threads = torch.get_num_threads()
        self.source = _Source(model)
        self._lengths = cache.lengths.numpy()  # the same memory, which is quicker to ask
        config = model.config
        rows = len(cache.lengths)
        self.logits = torch.empty(rows, config.vocab_size)
        layers = (_Layer * config.num_layers)()
        for layer, block, memory in zip(layers, model.blocks, cache.layers, strict=True):
            attention, mechanism = block.attention, block.attention.mechanism
            layer.attention_norm, layer.attention_norm_bias = _norm(block.attention_norm)
            layer.feed_forward_norm, layer.feed_forward_norm_bias = _norm(block.feed_forward_norm)
            if mechanism.qk_norm:
                layer.query_norm, layer.key_norm = (
                    address(getattr(mechanism, n).weight) for n in ("query_norm", "key_norm")
                )
            layer.sinks = address(mechanism.sinks)
            layer.query_key_value, layer.output = _linear(attention.query_key_value), _linear(attention.output)
            layer.expand, layer.contract = _linear(block.feed_forward.expand), _linear(block.feed_forward.contract)
            layer.kv_heads, layer.rotates, layer.slots = attention.num_kv_heads, attention.rotates, memory.ring
            layer.k, layer.v, layer.positions = map(address, (memory.k, memory.v, cache.positions[memory.ring]))
        embeddings = model.embeddings
        learned = embeddings.position.weight if config.position == "learned" else None
        final_norm, final_norm_bias = _norm(model.final_norm)
        rounded = config.tie_embeddings and weights != "float32"  # the embedding is the output layer, as it is stored
        about = _Model(
            width=config.embed_dim,
            heads=config.num_heads,
            head_dim=config.head_dim,
            hidden=config.ff_hidden_dim,
            vocabulary=config.vocab_size,
            num_layers=config.num_layers,
            rows=rows,
            rotary_dim=config.rotary_dim if config.rotates else 0,
            activation=ACTIVATIONS.index(config.activation),
            bits=_BITS[weights],
            threads=self._most_threads,
            theta=config.rope_theta,
            epsilon=config.layer_norm_epsilon,
            tokens=None if rounded else address(embeddings.token.weight),
            learned=address(learned),
            final_norm=final_norm,
            final_norm_bias=final_norm_bias,
            unembed=_Linear(address(model.output_weight), None, config.embed_dim, config.vocab_size),
            layers=layers,
        )
        library.gpt2lab_begin.restype = ctypes.c_void_p
        library.gpt2lab_write.restype = ctypes.c_int64
        step = library.gpt2lab_begin(ctypes.byref(about))
        if step is None:
            raise InputError("there is no room for the native step's copy of the weights; use --step eager")
        self._step = ctypes.c_void_p(step)
        weakref.finalize(self, library.gpt2lab_end, self._step)
        self._threads: dict[int, int] = {}  # by number of rows: how many pay
        self._now = self._most_threads
        self._seconds = _LONGEST_CALL  # of a token

    def write(self, texts: Sequence[Text], most: int) -> list[Drawn]:
        """Read the one token that each text has not read yet, and draw the next one; again and again.

        Args:
            texts: each has one unread token, and room for ``most`` in its context.
            most: how many tokens are written to each text at most. A call lasts a few milliseconds, or one token.

        Raises:
            InputError: the model's logits are not numbers.
        """
        rows = np.zeros(len(texts), _ROW)
        for row, text in zip(rows, texts, strict=True):
            way = text.way
            greedy = 0.0 if way.greedy else way.temperature
            penalised = 0 if text.seen is None else text.seen.data_ptr()
            row["place"], row["position"], row["token"] = text.place, self._lengths[text.place], text.unread[0]
            row["top_k"], row["temperature"] = way.top_k or 0, greedy
            row["top_p"] = 1 if way.top_p is None else way.top_p
            row["min_p"], row["penalty"], row["seen"] = way.min_p or 0, way.repetition_penalty, penalised
        self._lengths[rows["place"]] += 1  # before anything is written, so that clearing finds what there is
        self._use_threads(rows)
        n = max(1, min(most, int(_LONGEST_CALL / self._seconds)))
        noise = torch.zeros(len(texts), n, dtype=torch.float64)
        for numbers, text in zip(noise, texts, strict=True):
            if not text.way.greedy:  # the very numbers that the eager step would draw, one after the other
                torch.rand(n, generator=text.generator, dtype=torch.float64, out=numbers)
        rows["noise"] = noise.data_ptr() + noise.element_size() * n * np.arange(len(texts), dtype=np.uint64)
        self._lengths[rows["place"]] += n - 1
        started = time.perf_counter()
        ids, logprobs = self._call(rows, n)
        self._seconds = (time.perf_counter() - started) / n
        for layer in self._cache.layers:
            layer.read_in.add(torch.float32)
        tops = [[top] * n for top in likeliest(texts, self.logits[: len(texts)])]  # asked for one token at a time
        each = zip(ids.T.tolist(), logprobs.T.tolist(), tops, strict=True)
        return [list(zip(*drawn, strict=True)) for drawn in each]

    def _call(self, rows: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
        """Ids and logarithmic probabilities, (n, B) each."""
        ids, logprobs = np.empty((n, len(rows)), np.int64), np.empty((n, len(rows)))
        arrays = (self.logits.data_ptr(), ids.ctypes.data, logprobs.ctypes.data)
        bad = self._library.gpt2lab_write(
            self._step, Pointer(rows.ctypes.data), Int(len(rows)), Int(n), *map(Pointer, arrays)
        )
        if bad >= 0:
            raise InputError(NOT_NUMBERS)
        return ids, logprobs

    def _use_threads(self, rows: np.ndarray) -> None:
        """As many threads as pay for so many rows, measured once: a token that is read twice is remembered alike."""
        number = len(rows)
        if number not in self._threads:
            counts = sorted({1 << power for power in range(self._most_threads.bit_length())} | {self._most_threads})
            tried, taken = rows.copy(), dict.fromkeys(counts, math.inf)
            tried["seen"] = tried["temperature"] = 0
            for count in counts * _ROUNDS:
                self._set_threads(count)
                self._call(tried.copy(), 1)  # wakes the threads
                started = time.perf_counter()
                self._call(tried.copy(), 1)
                taken[count] = min(taken[count], time.perf_counter() - started)
            fastest = min(taken.values())
            self._threads[number] = next(count for count in counts if taken[count] < 1.1 * fastest)
            self._seconds = taken[self._threads[number]]
        self._set_threads(self._threads[number])

    def _set_threads(self, number: int) -> None:
        if number != self._now:
            self._library.gpt2lab_threads(self._step, Int(number))
            self._now = number


def _norm(norm: nn.LayerNorm) -> tuple[int | None, int | None]:
    return address(norm.weight), address(norm.bias)


def _linear(linear: nn.Linear) -> _Linear:
    return _Linear(address(linear.weight), address(linear.bias), linear.in_features, linear.out_features)
