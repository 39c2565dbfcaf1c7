"""``gpt2lab data pack``."""

import os
import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2lab.cli.screen import check_counts, console, errors
from gpt2lab.data.pack import pack
from gpt2lab.progress import shown


def pack_command(
    inputs: Annotated[list[str], Parameter(negative=())],
    /,
    *,
    out: Path,
    tokenizer: str = "gpt2",
    vocab_size: int = 32_768,
    shard_tokens: int = 100_000_000,
    text_column: str = "text",
    processes: int | None = None,
) -> int:
    """Encode documents into token shards, which `gpt2lab train --text FOLDER` reads; llm.c and modded-nanogpt do, too.

    Started again, the same command goes on after the last complete shard.

    Parameters
    ----------
    inputs
        Files, folders or globs: text files (each is one document), .jsonl and .jsonl.gz (a document a line), .parquet
        (a document a row; needs the package pyarrow). Packed in this order.
    out
        Folder for the shards and their tokenizer.json.
    tokenizer
        "gpt2", "char" or "bpe" (byte-level, learned from all the documents first), or the path of a tokenizer.json.
    vocab_size
        Ids of a "bpe" tokenizer.
    shard_tokens
        Tokens of every shard but the last: 100,000,000 are 200 MB.
    text_column
        Field of the JSON objects, or column of the Parquet files, that holds the text.
    processes
        How many encode at once; default: as many as there are cores.
    """
    processes = (os.cpu_count() or 1) if processes is None else processes
    check_counts(shard_tokens=shard_tokens, processes=processes)
    try:
        with shown(errors) as progress:
            shards = pack(
                inputs,
                out,
                tokenizer,
                vocab_size=vocab_size,
                shard_tokens=shard_tokens,
                text_column=text_column,
                processes=processes,
                progress=progress,
            )
    except KeyboardInterrupt:
        console.print("stopped; complete shards are kept, and the same command goes on", highlight=False)
        return 130
    console.print(
        f"done: {len(shards):,} tokens in {len(shards.files):,} shards · "
        f"train on them with: gpt2lab train --text {shlex.quote(str(out))}",
        highlight=False,
    )
    return 0
