"""``from_pretrained`` and ``gpt2lab import``: models of other programs become ours."""

import warnings
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from gpt2lab.config import Activation, GPT2Config
from gpt2lab.data.tokenizers import BPETokenizer, Tokenizer, load_tokenizer
from gpt2lab.errors import InputError
from gpt2lab.files import new_folder
from gpt2lab.interchange.families import stock
from gpt2lab.interchange.settings import SourceSettings
from gpt2lab.interchange.sources import Source, read_source
from gpt2lab.interchange.weights import Weights, model_of, ours_from, shortened
from gpt2lab.model import GPT2
from gpt2lab.model.saving import TOKENIZER


def from_pretrained(
    name_or_dir: str | Path, *, num_heads: int | None = None, activation: Activation | None = None
) -> GPT2:
    """GPT-2 and its relatives, with the weights of other programs; logits are theirs.

    Args:
        name_or_dir: a folder of Transformers (GPT2LMHeadModel, GPTBigCodeForCausalLM, Starcoder2ForCausalLM); a model
            of the Hugging Face hub, such as ``"gpt2"`` or ``"gpt2-xl"``, which is downloaded once; weights of nanoGPT
            or minGPT, as safetensors or as torch saved them.
        num_heads: query heads, where such weights do not say how many.
        activation: of the feed-forward network, likewise; None: that of nanoGPT or minGPT.

    Returns:
        the model, in evaluation mode, in float32 (or float64, if the source is).

    Raises:
        InputError: there is no such source, it is damaged, or it computes what no GPT2 can. Nothing is left out
            silently.

    Examples:
        >>> model = gpt2lab.from_pretrained("gpt2")  # doctest: +SKIP
    """
    return model_from(read_source(name_or_dir, SourceSettings(num_heads, activation)))


def import_model(
    name_or_dir: str | Path,
    out: str | Path,
    *,
    tokenizer: str | Path | None = None,
    num_heads: int | None = None,
    activation: Activation | None = None,
    force: bool = False,
) -> GPT2:
    """Write a model of another program as a folder that ``gpt2lab.load`` and every command read.

    Args:
        name_or_dir: as in :func:`from_pretrained`.
        out: the folder.
        tokenizer: ``"gpt2"``, or the path of a tokenizer.json; None: the source's.
        num_heads: as in :func:`from_pretrained`.
        activation: likewise.
        force: write into a folder that holds something already; files of the same names are replaced.

    Returns:
        the model.

    Raises:
        InputError: as in :func:`from_pretrained`; there is no tokenizer, or it does not fit; or the folder holds
            something already. Then nothing was written.
    """
    with new_folder(Path(out), force) as folder:
        source = read_source(name_or_dir, SourceSettings(num_heads, activation))
        model = model_from(source)
        model.save(folder, tokenizer_of(source, model.config.vocab_size, tokenizer))
    return model


def model_from(source: Source) -> GPT2:
    """The model that computes what a source does; its tensors are used up.

    Raises:
        InputError: something is missing, too much, of another shape, or nothing that a GPT2 can compute.
    """
    for note in source.notes:
        warnings.warn(note, stacklevel=3)
    try:
        config = replace(source.family.config(), bias=_has_biases(source))
        weights = ours_from(source.family, config, source.tensors)
        _refuse_others(source.tensors)
        if source.ours is not None and (short := _as_it_was(source.ours, config, weights)) is not None:
            return model_of(source.ours, short)
        return model_of(config, weights)
    except InputError as error:
        raise InputError(f"{source.name} {error}") from None


def _as_it_was(ours: GPT2Config, config: GPT2Config, weights: Weights) -> Weights | None:
    """The weights that a model had before it was exported, if that is still what the exported ones say."""
    try:
        family, wide = stock(replace(ours, vocab_size=config.vocab_size))
    except InputError:
        return None
    if family.of(wide).config() != replace(config, bias=True) or ours.vocab_size > config.vocab_size:
        return None
    return shortened(config, weights, ours)


def _has_biases(source: Source) -> bool:
    """Whether a source has biases that do something; those of a model without any are taken out."""
    biases = {name for name in source.tensors if name.endswith(".bias")}
    if source.family.has_biases or any(source.tensors[name].any() for name in biases):
        return bool(biases)
    for name in biases:
        del source.tensors[name]
    return False


def _refuse_others(left: Collection[str]) -> None:
    """Refuse tensors that no part of our model stands for."""
    if left:
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        raise InputError(f"has weights that a GPT2 of gpt2lab has no place for: {', '.join(sorted(left)[:5])}{more}")


def tokenizer_of(source: Source, vocab_size: int, asked: str | Path | None = None) -> Tokenizer:
    """The tokenizer that belongs to a source.

    Raises:
        InputError: it has none, or one that does not fit the model.
    """
    folder = source.place if source.place.is_dir() else source.place.parent
    if asked == "gpt2":
        tokenizer: Tokenizer = BPETokenizer.gpt2()
    elif asked is not None:
        tokenizer = load_tokenizer(asked)
    elif (folder / TOKENIZER).exists():
        tokenizer = load_tokenizer(folder / TOKENIZER)
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        tokenizer = BPETokenizer.from_files(folder / "vocab.json", folder / "merges.txt")
    else:
        raise InputError(
            f"{source.name} has no tokenizer (tokenizer.json, or vocab.json with merges.txt); name one: --tokenizer "
            "FILE, or --tokenizer gpt2 for GPT-2's own"
        )
    if isinstance(tokenizer, BPETokenizer) and tokenizer.vocab_size < vocab_size:
        return tokenizer.padded(vocab_size)
    if not tokenizer.fits(vocab_size):
        raise InputError(
            f"the tokenizer has {tokenizer.vocab_size:,} ids, and the model of {source.name} has {vocab_size:,}: they "
            "do not belong together; name the right one with --tokenizer FILE"
        )
    return tokenizer
