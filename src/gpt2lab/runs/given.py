"""Options that are given, beside what a file or a run says already: which of them count, and which are refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2lab.config import variant_switches
from gpt2lab.data import CharTokenizer, Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.options import declared, given_options, options_of
from gpt2lab.reading import read_settings
from gpt2lab.runs.folder import checkpoints_of, find_checkpoint
from gpt2lab.runs.settings import (
    SETTINGS,
    DataSettings,
    ModelSettings,
    RunSettings,
    StartSettings,
    TrainerConfig,
    read_recorded,
)

GPT2_IDS = 50_257


def merged_with_file(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are given, and those of the file or run that one of them names.

    Raises:
        InputError: the file cannot be used, or an option would make another run of one that goes on.
    """
    if (config := options.get("config")) is not None:
        written = given_options((StartSettings, *SETTINGS), read_settings(Path(config)), str(config))
        if "text" in options or "corpus" in options:  # another text than the file's
            written = {name: v for name, v in written.items() if name not in ("text", "corpus", "text_sha256")}
        options = {**written, **options}
    if (resume := options.get("resume")) is not None:
        run = Path(resume)
        if options.get("out") is not None:
            raise InputError(f"--resume goes on in {run} itself; leave out --out")
        if not checkpoints_of(run):
            find_checkpoint(run, "last")  # tells that it is no run
            raise InputError(f"{run} holds a model, not a run; --init-from {run} goes on from it in a new run")
        path = run / "config.yaml"
        begun = read_recorded(path)
        if options.get("text") is not None:  # it has moved: its hash tells whether it is the same
            if begun.get("text_sha256") is None:
                raise InputError(f"{path} has no text_sha256 to tell whether --text is the same text; leave that out")
            begun.pop("corpus", None)
        begun.pop("attention", None)  # a file that only a run folder names is never executed
        _refuse_other_settings(run, begun, options)
        refuse_another_model("--resume", options, RunSettings.of(begun).model)
        return begun | dict(options)
    return dict(options)


def _refuse_other_settings(run: Path, begun: Mapping[str, Any], options: Mapping[str, Any]) -> None:
    """Refuse options of text and training under which a run that goes on would be another one."""
    known = options_of(DataSettings, TrainerConfig)
    usual = RunSettings()
    changed = {}
    for name, value in options.items():
        if name in known and not declared(known[name][1]).on_resume:
            part = usual.data if hasattr(usual.data, name) else usual.training
            was = begun.get(name, getattr(part, name))
            if was != value:
                changed[name] = f"{name} {was}, not {value}"
    if changed:
        raise InputError(
            f"{run} was begun with {', '.join(changed.values())}; leave that out to go on, or begin a new run from its "
            f"model: --init-from {run}"
        )


def refuse_another_model(option: str, options: Mapping[str, Any], settled: ModelSettings) -> None:
    """Refuse options of the model that ask for another one than there is."""
    given = {name: value for name, value in options.items() if name in options_of(ModelSettings)}
    given.pop("attention", None)  # which is compared by its hash
    changed = [name for name, value in given.items() if name != "variant" and value != getattr(settled, name)]
    if "variant" in given:
        sizes = {name: getattr(settled, name) for name in ("context_size", "embed_dim", "num_heads")}
        asked = ModelSettings.of({"variant": given["variant"]} | sizes)
        usual = replace(asked, num_kv_heads=asked.num_kv_heads or asked.num_heads)
        if any(getattr(usual, name) != getattr(settled, name) for name in variant_switches("modern", 64, 4)):
            changed.append("variant")
    if changed:
        raise InputError(f"{option} keeps the model as it is; leave out {', '.join(changed)}")


def refuse_another_tokenizer(option: str, options: Mapping[str, Any], settled: Tokenizer) -> None:
    """Refuse options that ask for another tokenizer than a model has."""
    kind = "char" if isinstance(settled, CharTokenizer) else "gpt2" if settled.vocab_size == GPT2_IDS else "bpe"
    has = {"tokenizer": kind, "vocab_size": settled.vocab_size}
    changed = [f"{name}, which is {has[name]}" for name in has if options.get(name, has[name]) != has[name]]
    if changed:
        raise InputError(f"{option} keeps the tokenizer of the model; leave out {', '.join(changed)}")
