"""``gpt2lab data pack``."""

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.screen import console, errors
from gpt2lab.data.settings import PackSettings
from gpt2lab.progress import counted, shown
from gpt2lab.threads import available_cores

CORES = available_cores()


@with_flags({"Shards": PackSettings}, defaults={"processes": "as many as there are cores"})
def pack(inputs: Annotated[list[str], Parameter(negative=())], /, *, out: Path, options: object = None) -> int:
    """Encode documents into token shards, which `gpt2lab train --text FOLDER` reads; llm.c and modded-nanogpt do, too.

    Started again, the same command goes on after the last complete shard.

    Parameters
    ----------
    inputs
        Files, folders or globs: text files (each is one document), .jsonl, .ndjson or .json (a document a line), any of
        these compressed by gzip, bzip2 or xz, and .parquet (a document a row; needs the package pyarrow). Packed in
        this order.
    out
        Folder for the shards and their tokenizer.json.
    """
    from gpt2lab.data.pack import pack as pack_documents

    try:
        with shown(errors) as progress:
            shards = pack_documents(inputs, out, **({"processes": CORES} | given(options)), progress=progress)
    except KeyboardInterrupt:
        console.print("stopped; complete shards are kept, and the same command goes on")
        return 130
    for note in shards.notes:
        console.print(f"note: {note}")
    console.print(
        f"done: {len(shards):,} tokens in {counted(len(shards.files), 'shard')} · "
        f"train on them with: gpt2lab train --text {shlex.quote(str(out))}",
    )
    return 0
