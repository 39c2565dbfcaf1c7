"""How documents are packed: the options of ``gpt2lab data pack``."""

from dataclasses import dataclass

from gpt2lab.options import check, option

MOST_TOKENS = 2**31 - 1  # that the header of a shard can tell


@dataclass(frozen=True)
class PackSettings:
    """How documents become shards."""

    tokenizer: str = option(
        "gpt2",
        '"gpt2", "char" or "bpe" (byte-level, learned from all the documents first), or the path of a tokenizer.json.',
    )
    vocab_size: int = option(32_768, 'ids of a "bpe" tokenizer.', least=1)
    shard_tokens: int = option(
        100_000_000, "tokens of every shard but the last: 100,000,000 are 200 MB.", least=1, most=MOST_TOKENS
    )
    text_column: str = option("text", "field of the JSON objects, or column of the Parquet files, that holds the text.")
    processes: int = option(1, "how many encode at once.", least=1)

    def __post_init__(self) -> None:
        check(self)
