"""Writing with a run: what ``gpt2lab generate`` does."""

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor

from gpt2lab.data import END_OF_TEXT
from gpt2lab.errors import InputError
from gpt2lab.generation.engine import check_step
from gpt2lab.generation.generate import begin
from gpt2lab.generation.generate import generate as generate_ids
from gpt2lab.generation.sampling import Sampling
from gpt2lab.generation.settings import TEMPERATURE, GenerateOptions, GenerateSettings
from gpt2lab.generation.text import Decoder, usual_prompt
from gpt2lab.hardware import choose_device
from gpt2lab.model import GPT2
from gpt2lab.options import given_options, method_taking, part
from gpt2lab.runs.folder import load
from gpt2lab.runs.mechanisms import load_attention
from gpt2lab.runs.settings import RunSettings, Step, Weights, Which


@dataclass(frozen=True)
class Written:
    """What a run wrote.

    Attributes:
        prompt: what it went on from.
        texts: the continuations.
        tokens: how many tokens the longest of them has; each, if ``stop`` ended none.
        seconds: of writing, without loading.
    """

    prompt: str
    texts: list[str]
    tokens: int
    seconds: float


class Writing:
    """A run that is about to write; its arguments are those of :func:`generate_from_run`.

    Attributes:
        prompt: what it goes on from.
    """

    def __init__(self, run: str | Path, **given: Any) -> None:
        options = given_options((GenerateSettings, Sampling), {"temperature": TEMPERATURE} | given)
        self.asked = asked = GenerateSettings(**part(options, GenerateSettings))
        self.sampling = Sampling(**part(options, Sampling))
        self.model, self.tokenizer = load(run, attention=load_attention(asked.attention), checkpoint=asked.checkpoint)
        self.model.to(choose_device(asked.device))
        if asked.prompt is None and _knows_documents(run):
            self.prompt, self.ids = "", torch.tensor([self.tokenizer.end_of_text])
        else:
            self.prompt = usual_prompt(self.tokenizer) if asked.prompt is None else asked.prompt
            self.ids = torch.from_numpy(self.tokenizer.encode(self.prompt))
        if asked.stop == "":
            raise InputError("--stop is empty; give at least one character, or <|endoftext|>")
        if len(self.ids) == 0:
            raise InputError("--prompt is empty; give at least one character, such as a line break")
        self._pieces: list[list[str]] = []  # by step
        self._tokens, self._seconds = [0] * asked.num_samples, 0.0
        check_step(self.model, asked.step, asked.weights)

    def __iter__(self) -> Iterator[list[str]]:
        """What is added to every text, a few milliseconds at a time: nothing while a character is incomplete."""
        asked = self.asked
        stop = () if asked.stop is None else (asked.stop,)
        prompts = [self.ids] * asked.num_samples
        stop_ids = []
        if asked.stop == END_OF_TEXT:
            stop, stop_ids = (), [[self.tokenizer.end_of_text]]
        decoders = [Decoder(self.tokenizer, stop) for _ in prompts]
        engine = begin(
            self.model, prompts, asked.tokens, self.sampling, stop=stop_ids, step=asked.step, weights=asked.weights
        )
        started = time.perf_counter()
        while engine.rows:
            pieces = [""] * len(prompts)
            for token in engine.step(most=asked.tokens):
                if not decoders[token.row].ended:
                    pieces[token.row] += decoders[token.row].add(token.id)
                    self._tokens[token.row] += 1
                if decoders[token.row].ended:
                    engine.remove(token.row)
            self._pieces.append(pieces)
            self._seconds = time.perf_counter() - started
            yield pieces
        self._pieces.append([decoder.end() for decoder in decoders])
        yield self._pieces[-1]

    @property
    def written(self) -> Written:
        """What there is so far."""
        texts = ["".join(pieces) for pieces in zip(*self._pieces, strict=True)] or [""] * self.asked.num_samples
        return Written(self.prompt, texts, max(self._tokens), self._seconds)


def _knows_documents(run: str | Path) -> bool:
    """Whether a run says that it was trained on several documents, so that <|endoftext|> begins one."""
    with suppress(InputError):  # no settings, or damaged ones, do not keep a model from writing
        return RunSettings.read(Path(run) / "config.yaml").data.documents is True
    return False


@method_taking(GenerateOptions, first="run")
def generate_from_run(run: str | Path, **given: Any) -> Written:
    """Write text with a trained model, as ``gpt2lab generate`` does.

    Args:
        run: run folder.
        **given: fields of :class:`gpt2lab.generation.settings.GenerateOptions`, such as
            ``prompt="It was", tokens=200``; those of :class:`gpt2lab.Sampling` are among them. ``show`` is called with
            the prompt, and then with each piece of the first text as it is written.

    Raises:
        InputError: no such run, a prompt that is empty or that the tokenizer cannot write, settings out of range.
    """
    show = given.pop("show", None) or (lambda piece: None)
    writing = Writing(run, **given)
    show(writing.prompt)
    for pieces in writing:
        show(pieces[0])
    return writing.written


@overload
def generate(model: GPT2, ids: Tensor, num_tokens: int, **sampling: Any) -> Tensor: ...
@overload
def generate(
    model: str | Path,
    *,
    prompt: str | None = None,
    tokens: int = 500,
    stop: str | None = None,
    num_samples: int = 1,
    checkpoint: Which = "best",
    attention: str | type | None = None,
    device: str = "auto",
    step: Step = "auto",
    weights: Weights | None = None,
    show: Callable[[str], None] | None = None,
    **sampling: Any,
) -> Written: ...
def generate(model: GPT2 | str | Path, *arguments: Any, **options: Any) -> Tensor | Written:
    """Continue ids with a model (:func:`gpt2lab.generation.generate.generate`), or a prompt with a run's folder
    (:func:`generate_from_run`).
    """
    if isinstance(model, GPT2):
        return generate_ids(model, *arguments, **options)
    return generate_from_run(model, *arguments, **options)
