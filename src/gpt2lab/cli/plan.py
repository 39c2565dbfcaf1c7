"""``gpt2lab plan``: what a training would need, before anything is rented or started."""

import dataclasses
import json
import math
import re
import shlex
from bisect import bisect
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.screen import check_counts, console, errors
from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.model.gpt2 import MANY_LOGITS
from gpt2lab.model.saving import read_config
from gpt2lab.options import options_of, spelled
from gpt2lab.runs.folder import find_checkpoint
from gpt2lab.runs.settings import ModelSettings, OptimizerName
from gpt2lab.training.plan import Memory, Plan

# GPT-2 as it was published (Radford et al. 2019, table 2; the heads as in the published weights).
SIZES = {
    "gpt2": {"num_layers": 12, "embed_dim": 768, "num_heads": 12},
    "gpt2-medium": {"num_layers": 24, "embed_dim": 1024, "num_heads": 16},
    "gpt2-large": {"num_layers": 36, "embed_dim": 1280, "num_heads": 20},
    "gpt2-xl": {"num_layers": 48, "embed_dim": 1600, "num_heads": 25},
}
GPT2_VOCABULARY = 50_257

# NVIDIA H100 SXM, data sheet: dense products on tensor cores in bfloat16 (1,979 with sparsity), and plain float32.
H100_TFLOPS = {"bfloat16": 989.0, "float32": 67.0}
# Of the memory, for what is not counted: a GPU's libraries and buffers, and what its allocator loses between tensors.
LEFT_FREE = 0.1
MOST_ROWS = 1 << 16
# What help shows as the default of an option of the model.
UNCHANGED = dict.fromkeys(options_of(ModelSettings), "the model's")
TOKENS_PER_PARAMETER = 20  # Hoffmann et al. 2022 (arXiv:2203.15556), table 3: compute-optimal


@with_flags({"Model": ModelSettings}, ("random_config", "random_seed"), UNCHANGED)
def plan(
    *,
    model: str = "gpt2",
    devices: int = 1,
    memory: str = "80GB",
    tokens: str | None = None,
    batch_size: int | None = None,
    accumulation_steps: int = 1,
    optimizer: OptimizerName = "muon",
    precision: Literal["float32", "bfloat16"] = "bfloat16",
    vocab_size: int | None = None,
    peak_tflops: float | None = None,
    peak_share: float = 0.4,
    bandwidth: float | None = None,
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
    options: object = None,
) -> int:
    """Tell what a training would need: memory of each device, traffic, arithmetic, time, and the command for it.

    Memory is added up tensor by tensor for the fullest moment of a step of a model that is not compiled, and lies
    within a tenth of what is measured (docs/plan.md). Nothing is allocated, and no device is needed.

    Parameters
    ----------
    model
        gpt2, gpt2-medium, gpt2-large, gpt2-xl (the originals, with a context of 1,024), or a run folder. Options of the
        model that are given change it; the defaults shown for them count for nothing here.
    devices
        GPUs that train together.
    memory
        Of each device, such as 80GB, 80GiB or "16 GB".
    tokens
        To train on, such as 300B, 2.5B or 10M; default: 20 for every parameter (Hoffmann et al. 2022).
    batch_size
        Windows of a forward pass, over all devices; default: for each way to train, the most that fit.
    accumulation_steps
        Forward passes per optimiser step.
    optimizer
        "muon" or "adamw".
    precision
        "bfloat16" (autocast; weights in float32) or "float32".
    vocab_size
        Token ids; default: GPT-2's.
    peak_tflops
        What a device computes at most, in 10^12 operations a second; default: an NVIDIA H100 SXM by its data sheet, 989
        in bfloat16, 67 in float32 (without tensor cores).
    peak_share
        Share of it that all arithmetic reaches, recomputing included: an assumption. (PaLM reported 0.58, and 0.46
        without what was computed again: Chowdhery et al. 2022, arXiv:2204.02311.)
    bandwidth
        GB a second that each device sends while it receives as much; without it no time is told for the network.
    json_output
        Print JSON.
    """
    sizes, known = sizes_of_model(model)
    vocab_size = known if vocab_size is None else vocab_size
    switches = ModelSettings.of(sizes | given(options))
    check_counts(devices=devices, accumulation_steps=accumulation_steps, vocab_size=vocab_size)
    for name, value in (("peak-tflops", peak_tflops), ("peak-share", peak_share), ("bandwidth", bandwidth)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name} is {value}; it has to be positive")
    if switches.attention is not None:
        raise InputError("what an attention of one's own keeps in memory is not known; leave out --attention")
    if batch_size is not None and (batch_size < 1 or batch_size % devices):
        raise InputError(
            f"a batch of {batch_size} windows cannot be divided among {devices} devices; make --batch-size a multiple "
            f"of {devices}"
        )
    config = switches.config(vocab_size)
    limit = parse_size("memory", memory)
    base = Plan(config, 1, devices, "ddp", False, optimizer, precision, accumulation_steps)
    rows = None if batch_size is None else batch_size // devices
    num_tokens = TOKENS_PER_PARAMETER * base.model.num_parameters() if tokens is None else parse_size("tokens", tokens)
    speed = devices * peak_share * (H100_TFLOPS[precision] if peak_tflops is None else peak_tflops) * 1e12
    room = round((1 - LEFT_FREE) * limit)
    with errors.status("adding up"):
        found = {name: with_rows(way, room, rows) for name, way in ways(base).items()}
        described = [describe(name, way, room, num_tokens, speed, bandwidth) for name, way in found.items()]
    best = next((found[way["name"]] for way in described if way["fits"]), None)
    told = {
        "model": model,
        "config": config.to_dict(),
        "parameters": base.model.num_parameters(),
        "devices": devices,
        "memory": limit,
        "tokens": num_tokens,
        "flops": base.flops_per_token * num_tokens,
        "flops_6nd": 6 * base.model.num_parameters() * num_tokens,
        "flops_per_second": speed,
        "ways": described,
        "command": None if best is None else command(best, num_tokens),
    }
    if json_output:
        print(json.dumps(told, indent=2))
    else:
        tell(told, base, batch_size is None)
    return 0


def ways(base: Plan) -> dict[str, Plan]:
    """The ways to train, those that cost the least besides memory first: traffic costs less than computing again."""
    parallel = {"one device": base} if base.devices == 1 else {"DDP": base, "FSDP": replace(base, parallel="fsdp")}
    again = {f"{name}, recomputing": replace(way, activation_checkpointing=True) for name, way in parallel.items()}
    return parallel | again


def with_rows(way: Plan, room: int, rows: int | None) -> Plan:
    """A way with so many windows on each device, or with as many as fit into so many bytes (at least one)."""
    if rows is not None:
        return replace(way, rows=rows)
    first_in_pieces = MANY_LOGITS // (way.config.max_seq_len * way.config.vocab_size) + 1
    for low, high in ((first_in_pieces, MOST_ROWS), (1, first_in_pieces)):  # within each, memory grows with the rows
        fitting = bisect(range(low, high), room, key=lambda n: replace(way, rows=n).peak().total)
        if fitting:
            return replace(way, rows=low + fitting - 1)
    return replace(way, rows=1)


def describe(name: str, way: Plan, room: int, num_tokens: int, speed: float, bandwidth: float | None) -> dict[str, Any]:
    """What is told of a way to train, as JSON has it; sizes in bytes."""
    tokens_per_step = way.rows * way.devices * way.accumulation_steps * way.config.max_seq_len
    steps = math.ceil(num_tokens / tokens_per_step)
    sent, memory = way.traffic(), way.peak()
    return {
        "name": name,
        "parallel": way.parallel if way.devices > 1 else None,
        "activation_checkpointing": way.activation_checkpointing,
        "batch_size": way.rows * way.devices,
        "windows_per_device": way.rows,
        "fits": memory.total <= room,
        "memory": dataclasses.asdict(memory) | {"total": memory.total},
        "tokens_per_step": tokens_per_step,
        "steps": steps,
        "sent_per_step": sent,
        "arithmetic_seconds": (way.flops_per_token + way.recomputed_per_token) * num_tokens / speed,
        "network_seconds": None if bandwidth is None else steps * sum(sent.values()) / (bandwidth * 1e9),
    }


def command(way: Plan, num_tokens: int) -> str:
    """The training that is meant, as it is typed; on several machines, on each of them."""
    config = way.config
    start = "gpt2lab train"
    if way.devices > 1:
        nodes = way.devices // 8 if way.devices > 8 and way.devices % 8 == 0 else 1
        meeting = f"--nnodes {nodes} --rdzv-backend c10d --rdzv-endpoint HOST:29500" if nodes > 1 else "--standalone"
        start = f"torchrun {meeting} --nproc-per-node {way.devices // nodes} -m {start} --parallel {way.parallel}"
    per_step = way.rows * way.devices * way.accumulation_steps * config.max_seq_len
    options: dict[str, object] = {"text": "YOUR_TEXT", "tokenizer": "gpt2"}
    if config.vocab_size != GPT2_VOCABULARY:
        options |= {"tokenizer": "bpe", "vocab_size": config.vocab_size}
    options |= model_options(config) | {"batch_size": way.rows * way.devices}
    if way.accumulation_steps > 1:
        options["accumulation_steps"] = way.accumulation_steps
    options |= {"max_steps": math.ceil(num_tokens / per_step), "optimizer": way.optimizer, "precision": way.precision}
    if way.activation_checkpointing:
        options["activation_checkpointing"] = True
    options["compile"] = "no"
    return " ".join([start, *(typed(name, value) for name, value in options.items())])


def model_options(config: GPT2Config) -> dict[str, object]:
    """Options of the model that make it this one: its sizes, and what is not as in GPT-2."""
    sizes = ("num_layers", "num_heads", "embed_dim")
    plain = ModelSettings(
        variant="original", context_size=config.max_seq_len, **{name: getattr(config, name) for name in sizes}
    )
    asked = spelled(ModelSettings.describing(config, None))
    usual = spelled(ModelSettings.describing(plain.config(config.vocab_size), None))
    kept = ("variant", "context_size", *sizes)
    return {name: value for name, value in asked.items() if name in kept or value != usual[name]}


def typed(name: str, value: object) -> str:
    """An option as it is typed, such as ``--num-layers 12`` or ``--no-bias``."""
    words = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{words}" if value else f"--no-{words}"
    return f"--{words} {shlex.quote(str(value))}"


def parse_size(option: str, text: str) -> int:
    """Bytes of ``80GB``, ``80GiB`` or ``16 GB``, or a number of tokens such as ``300B``, ``2.5B`` or ``10M``."""
    units = r"(?:([KMGT])(i)?B)?" if option == "memory" else r"([KMBT])?()"
    found = re.fullmatch(rf"(\d+(?:\.\d+)?) *{units}", text.strip().replace(",", ""), re.IGNORECASE)
    if found is None:
        example = '80GB, 80GiB or "16 GB"' if option == "memory" else "300B, 2.5B, 10M or a whole number"
        raise InputError(f"--{option} is {text!r}; write it as {example}")
    number, unit, binary = found.groups()
    power = 1 + "KMGT".index(unit.upper().replace("B", "G")) if unit else 0
    size = round(float(number) * float(1024 if binary else 1000) ** power)
    if size < 1:
        raise InputError(f"--{option} is {text!r}; it has to be positive")
    return size


def tell(told: dict[str, Any], base: Plan, most: bool) -> None:
    """The plan in words and a table."""
    config, found = base.config, told["ways"]
    console.print(
        f"{told['model']}: {told['parameters']:,} parameters, {config.num_layers} blocks, {config.embed_dim:,} wide, "
        f"context {config.max_seq_len:,}, {config.vocab_size:,} token ids · {base.optimizer}, {base.precision}\n"
        f"{told['devices']} x {gigabytes(told['memory'])} GB, {told['tokens']:,} tokens",
        highlight=False,
    )
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("GB on a device", no_wrap=True)
    for way in found:
        table.add_column(way["name"], justify="right", style="" if way["fits"] else "dim")
    titles = {"optimizer": "optimiser state", "loss": "logits, loss"}
    for field in dataclasses.fields(Memory)[1:]:
        sizes = [way["memory"][field.name] for way in found]
        if any(sizes):
            table.add_row(titles.get(field.name, field.name), *map(gigabytes, sizes))
    table.add_row("in all", *(gigabytes(way["memory"]["total"]) for way in found), style="bold", end_section=True)
    rows = {
        "fits": ["yes" if way["fits"] else "NO" for way in found],
        "fullest in": [way["memory"]["moment"] for way in found],
        "windows": [f"{way['windows_per_device']:,}" for way in found],
        "tokens a step": [f"{way['tokens_per_step']:,}" for way in found],
        "steps": [f"{way['steps']:,}" for way in found],
    }
    if told["devices"] > 1:
        rows["GB sent a step"] = [gigabytes(sum(way["sent_per_step"].values())) for way in found]
    rows["arithmetic"] = [duration(way["arithmetic_seconds"]) for way in found]
    if found[0]["network_seconds"] is not None:
        rows["network"] = [duration(way["network_seconds"]) for way in found]
    for name, values in rows.items():
        table.add_row(name, *values)
    console.print(table)
    per_device = told["flops_per_second"] / told["devices"] / 1e12
    console.print(
        f"fits: leaves a tenth free for what is not counted{' · windows: the most that fit' if most else ''}\n"
        f"arithmetic: {told['flops']:.3g} operations in matrix products (6·parameters·tokens: "
        f"{told['flops_6nd']:.3g}), more when recomputing, at {per_device:.0f} TFLOP/s a device, which is an "
        "assumption (--peak-tflops, --peak-share)"
        + ("; the network may work at the same time" if "network" in rows else ""),
        highlight=False,
    )
    if told["command"] is None:
        console.print("nothing fits: take fewer windows (--batch-size) or more devices, or FSDP with --cpu-offload")
    else:
        console.print(f"the first that fits; its learning rate is yours to choose:\n{told['command']}", highlight=False)


def gigabytes(size: float) -> str:
    """Three digits."""
    return f"{size / 1e9:,.0f}" if size >= 1e11 else f"{size / 1e9:.3g}"


def duration(seconds: float) -> str:
    """In the largest unit that fits."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def sizes_of_model(name: str) -> tuple[dict[str, Any], int]:
    """Options of the model that --model names, and its vocabulary."""
    if name in SIZES:
        return {"variant": "original", "context_size": 1024} | SIZES[name], GPT2_VOCABULARY
    if not Path(name).exists():
        raise InputError(f"--model {name} is neither a run folder nor one of {', '.join(SIZES)}")
    config = read_config(find_checkpoint(name, "last"))
    described = ModelSettings.describing(config, config.attention)
    return {option: getattr(described, option) for option in options_of(ModelSettings)}, config.vocab_size
