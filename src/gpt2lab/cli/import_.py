"""``gpt2lab import``."""

import shlex
from pathlib import Path

from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.screen import console
from gpt2lab.interchange.settings import ImportSettings


@with_flags({"Source": ImportSettings})
def import_(name_or_dir: str, /, *, out: Path, options: object = None) -> int:
    """Bring in a model of another program: GPT-2's own weights, a folder of Transformers, nanoGPT, minGPT.

    Afterwards it is a folder that every command reads, with the same logits. What it computes that gpt2lab's models
    cannot is refused by name.

    Parameters
    ----------
    name_or_dir
        A folder of Transformers (the classes GPT2LMHeadModel, GPTBigCodeForCausalLM, Starcoder2ForCausalLM); a name on
        the Hugging Face hub, such as gpt2, gpt2-medium, gpt2-large or gpt2-xl; a file of weights of nanoGPT or minGPT.
    out
        Folder for the model.
    """
    from gpt2lab.interchange.pretrained import import_model

    model = import_model(name_or_dir, out, **given(options))
    folder = shlex.quote(str(out))
    console.print(
        f"{name_or_dir}: {model.num_parameters():,} parameters, a context of {model.config.max_seq_len:,} tokens"
    )
    console.print(
        f"write     gpt2lab generate {folder} --prompt 'It was'\n"
        f"measure   gpt2lab evaluate {folder} --text your.txt\n"
        f"train     gpt2lab train --init-from {folder} --text your.txt --learning-rate 3e-4"
    )
    return 0
