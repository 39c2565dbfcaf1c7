"""Which files are read, and how documents are packed: the options of ``gpt2lab data pack``."""

from dataclasses import dataclass
from typing import Any

from gpt2lab.errors import InputError
from gpt2lab.options import check, option
from gpt2lab.threads import MOST_THREADS

MOST_LEARNED = 1_000_000  # ids of a tokenizer that is learned here
MOST_TOKENS = 2**31 - 1  # that the header of a shard can tell


def parse_patterns(value: Any) -> tuple[str, ...]:
    """The names and globs that are meant by ``"drafts,*.bak"`` or a list."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) for part in parts):
        raise InputError(f"exclude is {value!r}; give names or globs of files, several with commas: drafts,*.bak.txt")
    return tuple(part.strip() for part in parts if part.strip())


@dataclass(frozen=True)
class FileSettings:
    """Which of the files that are found are read."""

    exclude: tuple[str, ...] = option(
        (),
        'names or globs of files and folders that are left out, such as "drafts" or "*.bak.txt".',
        in_comparison="all",
        on_resume=True,
        parse=parse_patterns,
        default="none",
    )
    skip_unreadable: bool = option(
        False,
        "leave out files that cannot be read, and documents without text, and name them; otherwise the first one ends "
        "the work.",
        in_comparison="all",
        on_resume=True,
    )


@dataclass(frozen=True)
class PackSettings(FileSettings):
    """How documents become shards."""

    tokenizer: str = option(
        "gpt2",
        '"gpt2", "char" or "bpe" (byte-level, learned from all the documents first), or the path of a tokenizer.json.',
    )
    vocab_size: int = option(32_768, 'ids of a "bpe" tokenizer.', least=1, most=1 << 16)
    shard_tokens: int = option(
        100_000_000, "tokens of every shard but the last: 100,000,000 are 200 MB.", least=1, most=MOST_TOKENS
    )
    text_column: str = option("text", "field of the JSON objects, or column of the Parquet files, that holds the text.")
    processes: int = option(1, "how many encode at once.", least=1, most=MOST_THREADS)

    def __post_init__(self) -> None:
        check(self)
