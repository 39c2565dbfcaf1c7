"""The ways to train a model on some devices, which of them fit, and how long they take: :func:`plan`."""

import dataclasses
import math
import shlex
from bisect import bisect, bisect_left
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.model.saving import read_config
from gpt2lab.options import given_options, options_of, part, spelled, taking
from gpt2lab.planning.activations import in_pieces
from gpt2lab.planning.memory import Memory, Way
from gpt2lab.planning.settings import GPT2_VOCABULARY, SIZES, PlanOptions, PlanSettings
from gpt2lab.runs.folder import find_checkpoint
from gpt2lab.runs.settings import ModelSettings

# NVIDIA H100 SXM, data sheet: dense products on tensor cores in bfloat16 (1,979 with sparsity), and plain float32.
H100_TFLOPS = {"bfloat16": 989.0, "float32": 67.0}
# Of the memory, for what is not counted: a GPU's libraries and buffers, and what its allocator loses between tensors.
LEFT_FREE = 0.1
MOST_ROWS = 1 << 16
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 (arXiv:2203.15556), table 3: compute-optimal


@dataclass(frozen=True)
class PlannedWay:
    """A way to train, and what it needs.

    Attributes:
        name: such as "FSDP, recomputing".
        way: the way itself.
        memory: of each device, in bytes, at the fullest moment of a step.
        fits: whether that leaves a tenth of the device free.
        tokens_per_step: over all devices.
        steps: to see all tokens.
        sent_per_step: bytes that each device sends in a step, by what for.
        arithmetic_seconds: for all steps, recomputing included.
        network_seconds: likewise, if nothing else is done meanwhile; None without a bandwidth.
    """

    name: str
    way: Way
    memory: Memory
    fits: bool
    tokens_per_step: int
    steps: int
    sent_per_step: dict[str, float]
    arithmetic_seconds: float
    network_seconds: float | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        way = self.way
        found = {of.name: getattr(self, of.name) for of in dataclasses.fields(self) if of.name != "way"}
        return found | {
            "parallel": way.parallel if way.devices > 1 else None,
            "activation_checkpointing": way.activation_checkpointing,
            "batch_size": way.rows * way.devices,
            "windows_per_device": way.rows,
            "memory": dataclasses.asdict(self.memory) | {"total": self.memory.total},
        }


@dataclass(frozen=True)
class Plan:
    """What a training needs.

    Attributes:
        model: what was asked about.
        config: its sizes and switches.
        parameters: how many values are trained.
        devices: how many train together.
        memory: bytes of each device.
        tokens: to train on.
        flops: floating-point operations in matrix products, over all tokens; recomputing not included.
        flops_6nd: the usual estimate of them, 6 · parameters · tokens (Kaplan et al. 2020, arXiv:2001.08361).
        flops_per_second: of all devices together, as assumed.
        ways: those that cost the least besides memory first.
        command: the training of the first way that fits, as it is typed; None if none fits.
    """

    model: str
    config: GPT2Config
    parameters: int
    devices: int
    memory: int
    tokens: int
    flops: float
    flops_6nd: int
    flops_per_second: float
    ways: list[PlannedWay]
    command: str | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        found = {of.name: getattr(self, of.name) for of in dataclasses.fields(self)}
        return found | {"config": self.config.to_dict(), "ways": [way.to_dict() for way in self.ways]}


@taking(PlanOptions)
def plan(**given: Any) -> Plan:
    """Tell what a training would need: memory of each device, traffic, arithmetic, time, and the command for it.

    Memory is added up tensor by tensor for the fullest moment of a step of a model that is not compiled, and lies
    within a tenth of what is measured (docs/plan.md). Nothing is allocated, and no device is needed.

    Args:
        **given: fields of :class:`gpt2lab.planning.settings.PlanOptions`, such as
            ``model="gpt2-xl", devices=8, memory="80GB", num_kv_heads=5``.

    Raises:
        InputError: options that cannot be used, or a model that is neither known by name nor a run folder.

    Example:
        >>> planned = gpt2lab.plan(model="gpt2-xl", devices=8, memory="40GB", tokens="300B", batch_size=256)
        >>> [(way.name, way.fits, way.memory.total) for way in planned.ways]
    """
    options = given_options((PlanOptions,), given)
    asked = PlanSettings(**part(options, PlanSettings))
    config = _model_meant(asked, part(options, ModelSettings))
    base = Way(config, 1, asked.devices, "ddp", False, asked.optimizer, asked.precision, asked.accumulation_steps)
    parameters = base.model.num_parameters()
    tokens = TOKENS_PER_PARAMETER * parameters if asked.tokens is None else asked.tokens
    peak = 1e12 * (H100_TFLOPS[asked.precision] if asked.peak_tflops is None else asked.peak_tflops)
    speed = asked.devices * asked.peak_share * peak
    room = round((1 - LEFT_FREE) * asked.memory)
    rows = None if asked.batch_size is None else asked.batch_size // asked.devices
    ways = {
        name: most_rows(way, room) if rows is None else replace(way, rows=rows) for name, way in ways_from(base).items()
    }
    found = [_planned(name, way, room, tokens, speed, asked.bandwidth) for name, way in ways.items()]
    best = next((planned.way for planned in found if planned.fits), None)
    return Plan(
        model=asked.model,
        config=config,
        parameters=parameters,
        devices=asked.devices,
        memory=asked.memory,
        tokens=tokens,
        flops=base.flops_per_token * tokens,
        flops_6nd=6 * parameters * tokens,
        flops_per_second=speed,
        ways=found,
        command=None if best is None else command(best, tokens),
    )


def _model_meant(asked: PlanSettings, switches: dict[str, Any]) -> GPT2Config:
    """The model that is named, changed by the options that are given."""
    vocab_size = GPT2_VOCABULARY
    if asked.model in SIZES:
        named = {"variant": "original", "context_size": 1024} | SIZES[asked.model]
    elif Path(asked.model).exists():
        known = read_config(find_checkpoint(asked.model, "last", ("config.json",)))
        described = ModelSettings.describing(known, known.attention)
        named = {name: getattr(described, name) for name in options_of(ModelSettings)}
        vocab_size = known.vocab_size
    else:
        raise InputError(f"--model {asked.model} is neither a run folder nor one of {', '.join(SIZES)}")
    settings = ModelSettings.of(named | switches)
    if settings.attention is not None:
        raise InputError("what an attention of one's own keeps in memory is not known; leave out --attention")
    return settings.config(asked.vocab_size or vocab_size)


def ways_from(base: Way) -> dict[str, Way]:
    """The ways to train, those that cost the least besides memory first: traffic costs less than computing again."""
    parallel = {"one device": base} if base.devices == 1 else {"DDP": base, "FSDP": replace(base, parallel="fsdp")}
    again = {f"{name}, recomputing": replace(way, activation_checkpointing=True) for name, way in parallel.items()}
    return parallel | again


def most_rows(way: Way, room: int) -> Way:
    """A way with as many windows on each device as fit into so many bytes, and at least one."""
    first_in_pieces = 1 + bisect_left(range(1, MOST_ROWS), True, key=lambda rows: in_pieces(way.config, rows))
    for low, high in ((first_in_pieces, MOST_ROWS), (1, first_in_pieces)):  # within each, memory grows with the rows
        fitting = bisect(range(low, high), room, key=lambda rows: replace(way, rows=rows).peak().total)
        if fitting:
            return replace(way, rows=low + fitting - 1)
    return replace(way, rows=1)


def _planned(name: str, way: Way, room: int, tokens: int, speed: float, bandwidth: float | None) -> PlannedWay:
    steps = math.ceil(tokens / way.tokens_per_step)
    sent, memory = way.traffic(), way.peak()
    return PlannedWay(
        name=name,
        way=way,
        memory=memory,
        fits=memory.total <= room,
        tokens_per_step=way.tokens_per_step,
        steps=steps,
        sent_per_step=sent,
        arithmetic_seconds=(way.flops_per_token + way.recomputed_per_token) * tokens / speed,
        network_seconds=None if bandwidth is None else steps * sum(sent.values()) / (bandwidth * 1e9),
    )


def command(way: Way, tokens: int) -> str:
    """The training that is meant, as it is typed; on several machines, on each of them."""
    config = way.config
    start = "gpt2lab train"
    if way.devices > 1:
        nodes = way.devices // 8 if way.devices > 8 and way.devices % 8 == 0 else 1
        meeting = f"--nnodes {nodes} --rdzv-backend c10d --rdzv-endpoint HOST:29500" if nodes > 1 else "--standalone"
        start = f"torchrun {meeting} --nproc-per-node {way.devices // nodes} -m {start} --parallel {way.parallel}"
    options: dict[str, object] = {"text": "YOUR_TEXT", "tokenizer": "gpt2"}
    if config.vocab_size != GPT2_VOCABULARY:
        options |= {"tokenizer": "bpe", "vocab_size": config.vocab_size}
    options |= _model_options(config) | {"batch_size": way.rows * way.devices}
    if way.accumulation_steps > 1:
        options["accumulation_steps"] = way.accumulation_steps
    options |= {"max_steps": math.ceil(tokens / way.tokens_per_step)}
    options |= {"optimizer": way.optimizer, "precision": way.precision}
    if way.activation_checkpointing:
        options["activation_checkpointing"] = True
    options["compile"] = "no"
    return " ".join([start, *(_typed(name, value) for name, value in options.items())])


def _model_options(config: GPT2Config) -> dict[str, object]:
    """Options of the model that make it this one: its sizes, and what is not as in GPT-2."""
    sizes = ("num_layers", "num_heads", "embed_dim")
    plain = ModelSettings(
        variant="original", context_size=config.max_seq_len, **{name: getattr(config, name) for name in sizes}
    )
    asked = spelled(ModelSettings.describing(config, None))
    usual = spelled(ModelSettings.describing(plain.config(config.vocab_size), None))
    kept = ("variant", "context_size", *sizes)
    return {name: value for name, value in asked.items() if name in kept or value != usual[name]}


def _typed(name: str, value: object) -> str:
    """An option as it is typed, such as ``--num-layers 12`` or ``--no-bias``."""
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{words}" if value else f"--no-{words}"
    return f"--{words} {shlex.quote(str(value))}"
