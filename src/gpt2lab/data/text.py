"""The text that a run works on: found, cut into parts, encoded."""

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2lab.data.corpora import SPLITS, Corpus, Split, open_corpus, split
from gpt2lab.data.datasets import TokenDataset, Tokens, encode_corpus
from gpt2lab.data.shards import Shards, find_shards
from gpt2lab.data.tokenizers import BPETokenizer, CharTokenizer, Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.progress import Progress, counted


@dataclass(frozen=True)
class Text:
    """A corpus, cut into parts, with the tokenizer that was fitted on it (or given); or shards of tokens.

    Attributes:
        corpus: the files.
        tokenizer: turns the text into ids.
        parts: start and end of each part: bytes of a corpus, tokens of shards.
    """

    corpus: Corpus | Shards
    tokenizer: Tokenizer
    parts: dict[Split, tuple[int, int]]

    @classmethod
    def open(
        cls,
        corpus: str | None = None,
        text: str | None = None,
        tokenizer: Tokenizer | str = "char",
        vocab_size: int = 1024,
        validation_fraction: float = 0.05,
        test_fraction: float = 0.05,
        text_sha256: str | None = None,
        exclude: Sequence[str] = (),
        skip_unreadable: bool = False,
    ) -> "Text":
        """Find the text, cut it, and fit the tokenizer.

        Args:
            corpus: name of a built-in text; with neither this nor ``text``: Shakespeare's plays.
            text: a file, a folder or a glob, of text or of shards.
            tokenizer: one that is there, or the kind to fit: "char", "bpe", "gpt2".
            vocab_size: of a "bpe" tokenizer that is fitted.
            validation_fraction: share before the test part.
            test_fraction: share at the end.
            text_sha256: what the hash of the text has to be; None: anything.
            exclude: names and globs of files that are left out.
            skip_unreadable: leave out files that are not UTF-8 text.

        Raises:
            InputError: no such text, another one than the hash says, or one that is too short to be cut.
        """
        shards = find_shards(text, exclude) if text and corpus is None else None
        found = open_corpus(corpus, text, exclude, skip_unreadable) if shards is None else shards
        if text_sha256 not in (None, found.sha256):
            raise InputError(
                f"the text {found.name} is not the one that was trained on (its SHA-256 differs); bring that back, or "
                "name the new one: --text with evaluate measures another text, --init-from with train goes on with one"
            )
        fractions = validation_fraction, test_fraction
        cuts = split(found, *fractions) if isinstance(found, Corpus) else found.split(*fractions)
        parts: dict[Split, tuple[int, int]] = {name: cuts[name] for name in SPLITS}
        fitted = BPETokenizer.gpt2() if tokenizer == "gpt2" else None if isinstance(tokenizer, str) else tokenizer
        if isinstance(found, Shards):
            fitted = found.tokenizer(fitted)
            found = found.of_vocabulary(fitted.vocab_size)
        elif fitted is None and tokenizer == "char":
            fitted = CharTokenizer.from_corpus(found)
        elif fitted is None:
            fitted = BPETokenizer.train(found.chunks(*parts["train"]), vocab_size)
        return cls(found, fitted, parts)

    @property
    def documents(self) -> bool:
        """Whether there are several documents, each but the first after an ``<|endoftext|>``."""
        if isinstance(self.corpus, Shards):
            return bool(self.corpus[0] == self.tokenizer.end_of_text)  # packed documents begin so
        return len(self.corpus.files) > 1

    def tokens(self, part: Split | None = None, progress: Progress | None = None) -> Tokens:
        """Ids of a part, or of everything; ``progress`` hears of the bytes that are encoded."""
        if part not in (None, *SPLITS):
            raise InputError(f"split is {part!r}; it has to be one of {', '.join(SPLITS)}")
        start, stop = (0, self.parts["test"][1]) if part is None else self.parts[part]
        if start == stop:
            raise InputError(f"{self.corpus.name} was split without a {part} part; name another one with --split")
        if isinstance(self.corpus, Shards):
            return self.corpus[start:stop]
        what = f"encoding {f'the {part} part' if part else 'the text'}"
        told = None if progress is None else lambda done: progress(what, done, stop - start)
        return encode_corpus(self.corpus, self.tokenizer, start, stop, told)

    def dataset(self, part: Split, context_size: int, progress: Progress | None = None) -> TokenDataset:
        """Windows of a part."""
        start, stop = self.parts[part]
        if start == stop:
            raise InputError(f"the {part} part of {self.corpus.name} is too short: it is empty; use more text")
        tokens = self.tokens(part, progress)
        try:
            return TokenDataset(tokens, context_size, self.tokenizer.vocab_size)
        except InputError as error:
            raise InputError(f"the {part} part of {self.corpus.name} is too short: {error} (--context-size)") from None

    def describe(self) -> str:
        """What it is, in a line, and a line for each thing that there is to say about its files."""
        size, files = self.parts["test"][1], len(self.corpus.files)
        if isinstance(self.corpus, Shards):
            unit = f"tokens in {counted(files, 'shard')}"
        else:
            unit = "bytes" if files == 1 else f"bytes in {counted(files, 'file')}"
        shares = " · ".join(
            f"{name} {stop - start:,} ({(stop - start) / size:.0%})" for name, (start, stop) in self.parts.items()
        )
        line = f"{self.corpus.name}: {size:,} {unit}, in order: {shares} · {self.tokenizer.vocab_size:,} token ids"
        return "\n".join((line, *(f"note: {note}" for note in self.corpus.notes)))
