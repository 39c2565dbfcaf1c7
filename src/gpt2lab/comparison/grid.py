"""From the arms of a comparison to the settings of its cells: matched, probed, and estimated."""

import dataclasses
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from types import MappingProxyType

from rich.console import Console

from gpt2lab.comparison.cells import has_diverged, is_finished
from gpt2lab.comparison.folder import DISQUALIFIED, Key, arm_folder
from gpt2lab.comparison.measure import CONTEXT_FACTORS, CONTEXT_TOKENS
from gpt2lab.comparison.settings import Match, Options
from gpt2lab.config import GPT2Config
from gpt2lab.data import TokenDataset
from gpt2lab.data.corpora import SPLITS
from gpt2lab.data.text import Text
from gpt2lab.errors import InputError
from gpt2lab.files import atomic_write
from gpt2lab.hardware import synchronise, torch_threads
from gpt2lab.model import GPT2, CacheError, CausalityError, assert_causal
from gpt2lab.model.attention import Mechanism
from gpt2lab.options import given_options
from gpt2lab.progress import Progress, plain_console
from gpt2lab.runs.settings import SETTINGS, ModelSettings, RunSettings
from gpt2lab.training import Trainer
from gpt2lab.training.metrics import exact_loss

DEFAULT_STEPS = 500
TUNING_FACTORS = (0.25, 0.5, 1.0, 2.0)
PROBED_WHOLE = 256  # contexts up to this long are probed at every position, longer ones as before every training
STARTING_SECONDS = 8.0  # of a cell's process, before and after its training


@dataclass(frozen=True)
class Cell:
    """One training of a comparison."""

    key: Key
    folder: Path
    settings: RunSettings


def plan(
    shared: Options,
    arms: Mapping[str, Options],
    contexts: Sequence[int],
    vocab_size: int,
    match: Match,
    own: Mapping[str, Mechanism] = MappingProxyType({}),
) -> dict[Key, RunSettings]:
    """Settings of every arm at every context, without the seed and the steps.

    Args:
        shared: options of all arms.
        arms: options of each, the baseline first.
        contexts: sizes; the batches of the first are as large as ``shared`` says, the others have as many tokens.
        vocab_size: of the text.
        match: in what every arm is made equal to the baseline.
        own: the arms' own attention, by arm.

    Raises:
        InputError: an arm that cannot be built, cannot be matched, or is the same as another one.
    """
    planned: dict[Key, RunSettings] = {}
    for context in contexts:
        baseline: GPT2 | None = None
        known: dict[str, str] = {}
        for name, options in arms.items():
            try:
                settings = _settings(shared, options, context, contexts[0])
                model = GPT2.from_config(settings.model.config(vocab_size), attention=own.get(name))
                baseline = baseline or model
                config = model.config if match == "none" else _matched(model, baseline, match)
            except (InputError, TypeError) as error:
                raise InputError(f"the arm {name} cannot be made at a context of {context}: {error}") from None
            identity = _identity(config, settings)
            if identity in known:
                given = ", ".join(f"{n}={v}" for n, v in options.items()) or "none"
                raise InputError(
                    f"at a context of {context} the arm {name} is the very same model as {known[identity]}: its "
                    f"options ({given}) change nothing there; leave it out"
                )
            known[identity] = name
            described = ModelSettings.describing(config, settings.model.attention)
            planned[context, name] = dataclasses.replace(settings, model=described)
    return planned


def _settings(shared: Options, options: Options, context: int, first_context: int) -> RunSettings:
    usual = RunSettings.of(shared).training.batch_size
    batch_size = max(1, round(usual * first_context / context))
    of_context = {"variant": "original", "context_size": context, "batch_size": batch_size}
    return RunSettings.of({**shared, **of_context, **given_options(SETTINGS, options)})


def _matched(model: GPT2, baseline: GPT2, match: Match) -> GPT2Config:
    """The configuration with the feed-forward width that makes a model as large, or as costly, as the baseline's."""
    config = model.config
    if match == "parameters":
        lacking: float = baseline.num_parameters() - model.num_parameters()
        unit = 2 * config.embed_dim + config.bias
    else:
        lacking, unit = baseline.flops_per_token() - model.flops_per_token(), 4 * config.embed_dim
    width = config.ff_hidden_dim + round(lacking / (unit * config.num_layers))
    if width < 1:
        raise InputError(f"it has so much outside its feed-forward layers that these cannot make it match by {match}")
    return dataclasses.replace(config, ff_hidden_dim=width)


def _identity(config: GPT2Config, settings: RunSettings) -> str:
    """What an arm computes: equal for two that differ only in words."""
    values = config.to_dict() | dataclasses.asdict(settings.training)
    windows = [config.layer_window(layer) for layer in range(config.num_layers)]
    values["window"] = [None if w is None or w >= config.max_seq_len else w for w in windows]
    values["num_kv_heads"] = config.kv_heads
    values["position"] = [config.layer_position(layer) for layer in range(config.num_layers)]
    if not config.rotates:
        del values["rope_theta"], values["rope_fraction"]
    return repr(sorted(values.items()))


def try_all(
    planned: Mapping[Key, RunSettings],
    own: Mapping[str, Mechanism],
    text: Text,
    out: Path,
    threads: int,
    console: Console,
    progress: Progress,
) -> dict[Key, float]:
    """Seconds of a training step of every arm that does not read the future; the others are noted and left out."""
    found: dict[Key, float] = {}
    train: dict[int, TokenDataset] = {}
    for context in dict.fromkeys(context for context, _ in planned):  # each part is long enough, or this tells
        train[context], *_ = (text.dataset(part, context, progress) for part in SPLITS)
    with torch_threads(threads):
        for number, (key, settings) in enumerate(planned.items(), 1):
            note = arm_folder(out, key) / DISQUALIFIED
            note.unlink(missing_ok=True)
            try:
                found[key] = _try_out(settings, own.get(key[1]), train[key[0]])
            except CausalityError as error:
                console.print(f"{key[1]} at a context of {key[0]} is disqualified: {error}")
                note.parent.mkdir(parents=True, exist_ok=True)
                with atomic_write(note) as file:
                    file.write(json.dumps({"leaks": error.leaks, "message": str(error)}).encode())
            except CacheError as error:
                raise InputError(f"the arm {key[1]}: {error}") from None
            except RuntimeError as error:  # an arm's own attention
                raise InputError(f"the arm {key[1]} fails at a context of {key[0]}: {error}") from None
            progress("trying every arm", number, len(planned))
    return found


def _try_out(settings: RunSettings, attention: Mechanism | None, train: TokenDataset) -> float:
    config = settings.model.config(train.vocab_size)
    model = GPT2.from_config(config, attention=attention, seed=settings.training.seed)
    if config.max_seq_len <= PROBED_WHOLE:
        assert_causal(model)
    training = dataclasses.replace(settings.training, max_steps=4, out=None, compile="no")
    trainer = Trainer(model, train, None, training, console=plain_console(quiet=True))
    batches = trainer.batches()
    trainer.update(batches)
    begin = time.perf_counter()
    for _ in range(3):
        trainer.update(batches)
    synchronise(trainer.device)
    return (time.perf_counter() - begin) / 3


def settle_steps(budget: Mapping[str, float], settings: RunSettings, baseline_step_seconds: float) -> int:
    """Steps of a training, from the one of steps, tokens and minutes that is given."""
    training, context = settings.training, settings.model.context_size
    if "tokens" in budget:
        return math.ceil(budget["tokens"] / (context * training.batch_size * training.accumulation_steps))
    if "minutes" in budget:
        return max(10, round(60 * budget["minutes"] / baseline_step_seconds))
    return int(budget.get("steps", DEFAULT_STEPS))


def tuning_cells(out: Path, key: Key, settings: RunSettings) -> list[Cell]:
    """Trainings that choose an arm's learning rate."""
    rates = [factor * settings.training.learning_rate for factor in TUNING_FACTORS]
    folder = arm_folder(out, key) / "tune"
    return [Cell(key, folder / f"rate-{rate:.10g}", settings.trained_with(learning_rate=rate)) for rate in rates]


def best_rate(cells: list[Cell]) -> float | None:
    """The learning rate that ended at the lowest loss on the whole validation part.

    None while one of them has not ended, so that nothing is chosen from a part, or if all have diverged.
    """
    if not all(is_finished(cell.folder) for cell in cells):
        return None
    ended = [cell for cell in cells if not has_diverged(cell.folder)]
    losses = [(loss, cell) for cell in ended if (loss := exact_loss(cell.folder)) is not None]
    return min(losses, key=itemgetter(0))[1].settings.training.learning_rate if losses else None


def estimate_hours(cells: list[Cell], step_seconds: dict[Key, float], text: Text, workers: int) -> float:
    """How long the unfinished cells will take, from the time of a training step (a third of which is reading)."""
    seconds = 0.0
    sizes = {part: stop - start for part, (start, stop) in text.parts.items()}
    for cell in cells:
        if is_finished(cell.folder):
            continue
        training, step = cell.settings.training, step_seconds[cell.key]
        steps = training.max_steps or 0
        eval_every, eval_tokens = training.estimates(steps, cell.settings.model.context_size)
        looks = 1 + steps // eval_every if eval_every else 1
        read = looks * min(eval_tokens, sizes["validation"]) + sizes["validation"] + sizes["test"]
        read += len(CONTEXT_FACTORS) * min(CONTEXT_TOKENS, sizes["test"])
        tokens_per_step = training.batch_size * training.accumulation_steps * cell.settings.model.context_size
        seconds += STARTING_SECONDS + step * (steps + read / tokens_per_step / 3)
    return seconds / workers / 3600
