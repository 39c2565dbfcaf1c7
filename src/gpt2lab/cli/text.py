"""The text that a command works on: found, cut into parts, encoded."""

from dataclasses import dataclass
from typing import Literal

from rich.progress import Progress

from gpt2lab.cli.settings import DataSettings, errors
from gpt2lab.data import (
    BPETokenizer,
    CharTokenizer,
    Corpus,
    Shards,
    TokenDataset,
    Tokenizer,
    encode_corpus,
    find_shards,
    open_corpus,
    split,
)
from gpt2lab.data.datasets import Tokens
from gpt2lab.errors import InputError

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Text:
    """A corpus, cut into parts and encoded with the tokenizer that was fitted on it (or given); or shards."""

    corpus: Corpus | Shards
    tokenizer: Tokenizer
    parts: dict[Split, tuple[int, int]]

    @classmethod
    def open(cls, settings: DataSettings, tokenizer: Tokenizer | None = None) -> "Text":
        """Find the text, cut it, and fit the tokenizer."""
        shards = find_shards(settings.text) if settings.text and settings.corpus is None else None
        corpus = open_corpus(settings.corpus, settings.text) if shards is None else shards
        if settings.text_sha256 not in (None, corpus.sha256):
            raise InputError(
                f"the text {corpus.name} is not the one that was trained on (its SHA-256 differs); bring that back, or "
                "name the new one: --text with evaluate measures another text, --init-from with train goes on with one"
            )
        fractions = settings.validation_fraction, settings.test_fraction
        found = split(corpus, *fractions) if isinstance(corpus, Corpus) else corpus.split(*fractions)
        parts: dict[Split, tuple[int, int]] = {name: found[name] for name in SPLITS}
        if tokenizer is None and settings.tokenizer == "gpt2":
            tokenizer = BPETokenizer.gpt2()
        if isinstance(corpus, Shards):
            tokenizer = corpus.tokenizer(tokenizer)
            corpus = corpus.of_vocabulary(tokenizer.vocab_size)
        elif tokenizer is None and settings.tokenizer == "char":
            tokenizer = CharTokenizer.from_corpus(corpus)
        elif tokenizer is None:
            tokenizer = BPETokenizer.train(corpus.chunks(*parts["train"]), settings.vocab_size)
        return cls(corpus, tokenizer, parts)

    def tokens(self, part: Split | None = None) -> Tokens:
        """Ids of a part, or of everything."""
        start, stop = (0, self.parts["test"][1]) if part is None else self.parts[part]
        if start == stop:
            raise InputError(f"{self.corpus.name} was split without a {part} part; name another one with --split")
        if isinstance(self.corpus, Shards):
            return self.corpus[start:stop]
        with Progress(transient=True, console=errors, disable=not errors.is_terminal) as progress:
            task = progress.add_task(f"encoding {f'the {part} part' if part else 'the text'}", total=stop - start)
            return encode_corpus(
                self.corpus, self.tokenizer, start, stop, lambda done: progress.update(task, completed=done)
            )

    def dataset(self, part: Split, context_size: int) -> TokenDataset:
        """Windows of a part."""
        try:
            return TokenDataset(self.tokens(part), context_size, self.tokenizer.vocab_size)
        except InputError as error:
            raise InputError(f"the {part} part of {self.corpus.name} is too short: {error} (--context-size)") from None

    def describe(self) -> str:
        """One line for the screen."""
        size = self.parts["test"][1]
        unit = f"tokens in {len(self.corpus.files):,} shards" if isinstance(self.corpus, Shards) else "bytes"
        shares = " · ".join(
            f"{name} {stop - start:,} ({(stop - start) / size:.0%})" for name, (start, stop) in self.parts.items()
        )
        return f"{self.corpus.name}: {size:,} {unit}, in order: {shares} · {self.tokenizer.vocab_size:,} token ids"
