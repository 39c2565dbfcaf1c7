"""A trained model gets other switches, is trained further, and tells what that has cost: ``gpt2lab retrofit``."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gpt2lab.errors import InputError
from gpt2lab.evaluation.evaluate import evaluate
from gpt2lab.files import atomic_write
from gpt2lab.model import GPT2
from gpt2lab.options import given_options, method_taking, options_of, part
from gpt2lab.plots import new_plot, save_plot, short_numbers
from gpt2lab.retrofit.convert import converted
from gpt2lab.retrofit.settings import RetrofitOptions, RetrofitSettings
from gpt2lab.runs.folder import WEIGHTS, checkpoints_of, find_checkpoint, load, open_text, read_state
from gpt2lab.runs.settings import DataSettings, TrainerConfig, read_recorded
from gpt2lab.training.metrics import read_metrics
from gpt2lab.training.run import Run, train

CONVERTED, CONTROLS, RESULT, PICTURE = "converted", "controls", "retrofit.json", "retrofit.svg"


@dataclass(frozen=True)
class Retrofit:
    """What a conversion has cost, and what further training has brought back. Losses are of the whole validation part,
    nats per token, but for those along the training, which are estimates.

    Attributes:
        run: the run folder of the model with the new switches.
        before: loss of the model as it was.
        damaged: right after the conversion, by switch and ``"together"``.
        along: (tokens of the further training, loss).
        after: at its end; None if it was stopped.
        unconverted: of the same model, trained further as it was; None without controls.
        scratch: of a model that had the new switches from the beginning, trained with as many tokens in all; None
            without controls, or where nobody knows how many those were.
    """

    run: Path
    before: float
    damaged: dict[str, float]
    along: list[tuple[int, float]]
    after: float | None
    unconverted: float | None = None
    scratch: float | None = None


@method_taking(RetrofitOptions, first="source")
def retrofit(source: str | Path, **given: Any) -> Retrofit:
    """Give a trained model shared key/value heads, other positions or a window, and train it a little further.

    Args:
        source: run folder, or one that ``gpt2lab import`` or ``model.save`` wrote.
        **given: fields of :class:`gpt2lab.retrofit.settings.RetrofitOptions`: the new switches, how long the further
            training is, and every option of :func:`gpt2lab.train` about text and training. What is not given is as the
            run was trained. ``progress`` is called as there.

    Returns:
        the losses before, right after and along the training, and of the controls. The folder ``out`` is a run, and has
        them in ``retrofit.json`` and ``retrofit.svg``.

    Raises:
        InputError: the model cannot be converted so, or nothing says how long it is to be trained.
    """
    progress = given.pop("progress", None)
    options = given_options((RetrofitSettings, DataSettings, TrainerConfig), given)
    asked = RetrofitSettings(**part(options, RetrofitSettings))
    folder = Path(source)
    model, tokenizer = load(folder)
    switches = {name: options[name] for name in ("num_kv_heads", "position", "window") if name in options}
    variant = converted(model, **switches, heads=asked.heads)
    alone = {name: converted(model, **{name: value}, heads=asked.heads) for name, value in switches.items()}
    begun, seen = _recorded(folder), _tokens(folder)
    if "text" in options or "corpus" in options:
        begun = {name: value for name, value in begun.items() if name not in ("text", "corpus", "text_sha256")}
    training = {**begun, **{name: value for name, value in options.items() if name not in options_of(RetrofitSettings)}}
    usual = TrainerConfig(**part(training, TrainerConfig))
    per_step = usual.batch_size * usual.accumulation_steps * model.config.max_seq_len
    if "max_epochs" in options:
        raise InputError("retrofit has no max_epochs; give share, or max_steps")
    if "max_steps" not in options:
        if seen is None:
            raise InputError(f"nothing says how many tokens {source} was trained with; add --max-steps")
        training["max_steps"] = math.ceil(asked.share * seen / per_step)
    if "out" not in options:
        raise InputError("--out is missing: the folder for the model with the new switches")
    out = Path(options["out"])
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} holds something already; choose another --out")
    data = DataSettings(**part(training, DataSettings))
    tokens = open_text(data, tokenizer).tokens("validation")

    def loss(of: GPT2) -> float:
        return evaluate(of, tokens, tokenizer).loss

    def trained(start: GPT2, place: Path, **changes: Any) -> Run:
        start.save(place / CONVERTED, tokenizer)
        return train(**{**training, "init_from": place / CONVERTED, "out": place, "progress": progress, **changes})

    before = loss(model)
    damaged = {name: loss(one) for name, one in alone.items()} | {"together": loss(variant)}
    run = trained(variant, out)
    records = [] if run.stopped_by else read_metrics(out / "metrics.jsonl")
    found = Retrofit(
        run=out,
        before=before,
        damaged=damaged,
        along=[(r["tokens"], value) for r in records if (value := r.get("validation_loss")) is not None],
        after=run.loss,
    )
    if asked.controls and run.stopped_by is None:
        as_it_was = trained(model, out / CONTROLS / "unconverted", start_window=None)
        found = replace(found, unconverted=as_it_was.loss)
        if seen is not None and as_it_was.stopped_by is None:
            fresh = GPT2.from_config(variant.config, seed=usual.seed)
            steps = math.ceil(seen / per_step) + training["max_steps"]
            scratch = trained(fresh, out / CONTROLS / "scratch", max_steps=steps, start_window=None)
            found = replace(found, scratch=scratch.loss)
    _write(found)
    return found


def _recorded(folder: Path) -> dict[str, Any]:
    """How a run was trained, and on what; nothing, for a saved model."""
    if not (folder / "config.yaml").exists():
        return {}
    known = options_of(DataSettings, TrainerConfig).keys() - {"tokenizer", "vocab_size"}  # which are the model's
    return {name: value for name, value in read_recorded(folder / "config.yaml").items() if name in known}


def _tokens(folder: Path) -> int | None:
    """How many tokens a run was trained with, if it is one."""
    return read_state(find_checkpoint(folder, "last", WEIGHTS)).tokens if checkpoints_of(folder) else None


def _write(found: Retrofit) -> None:
    """Keep the losses as numbers and as a picture."""
    told = {**asdict(found), "run": str(found.run)}
    with atomic_write(found.run / RESULT) as file:
        file.write((json.dumps(told, indent=2) + "\n").encode())
    figure, axes = new_plot("tokens of further training", "validation loss, nats per token")
    along = [(0, found.damaged["together"]), *found.along]
    axes.plot(*zip(*along, strict=True), marker="o", ms=4, label="converted")
    lines = {"before": found.before, "trained further as it was": found.unconverted, "from scratch": found.scratch}
    for number, (name, level) in enumerate(lines.items(), 1):
        if level is not None:
            axes.axhline(level, color=f"C{number}", ls="--", lw=1, label=name)
    short_numbers(axes.xaxis)
    axes.legend(frameon=False)
    save_plot(figure, found.run / PICTURE)
