"""``gpt2lab plan``: what a training would need, before anything is rented or started."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.box import SIMPLE_HEAD
from rich.table import Table

from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.screen import console, errors, print_json
from gpt2lab.options import options_of
from gpt2lab.planning.settings import PlanSettings
from gpt2lab.runs.settings import ModelSettings

if TYPE_CHECKING:
    from gpt2lab.planning.ways import Plan

# What help shows as the default of an option of the model.
UNCHANGED = dict.fromkeys(options_of(ModelSettings), "the model's")


@with_flags({"Plan": PlanSettings, "Model": ModelSettings}, ("random_config", "random_seed"), UNCHANGED)
def plan(*, json_output: Annotated[bool, Parameter(name="--json", negative=())] = False, options: object = None) -> int:
    """Tell what a training would need: memory of each device, traffic, arithmetic, time, and the command for it.

    Memory is added up tensor by tensor for the fullest moment of a step of a model that is not compiled, and lies
    within a tenth of what is measured (docs/plan.md). Nothing is allocated, and no device is needed. Where nothing
    fits, the exit code is 1.

    Parameters
    ----------
    json_output
        Print JSON.
    """
    from gpt2lab.planning.ways import plan as plan_ways

    asked = given(options)
    with errors.status("adding up"):
        planned = plan_ways(**asked)
    if json_output:
        print_json(planned.to_dict())
    else:
        tell(planned, "batch_size" not in asked)
    return 1 if planned.command is None else 0


def tell(plan: "Plan", most: bool) -> None:
    """The plan in words and a table."""
    config, found, way = plan.config, plan.ways, plan.ways[0].way
    console.print(
        f"{plan.model}: {plan.parameters:,} parameters, {config.num_layers} blocks, {config.embed_dim:,} wide, "
        f"context {config.max_seq_len:,}, {config.vocab_size:,} token ids · {way.optimizer}, {way.precision}\n"
        f"{plan.devices} x {gigabytes(plan.memory)} GB, {plan.tokens:,} tokens",
    )
    table = Table(box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    table.add_column("GB on a device", no_wrap=True)
    for one in found:
        table.add_column(one.name, justify="right", style="" if one.fits else "dim")
    titles = {"optimizer": "optimiser state", "loss": "logits, loss"}
    for field in dataclasses.fields(found[0].memory)[1:]:
        sizes = [getattr(one.memory, field.name) for one in found]
        if any(sizes):
            table.add_row(titles.get(field.name, field.name), *map(gigabytes, sizes))
    table.add_row("in all", *(gigabytes(one.memory.total) for one in found), style="bold", end_section=True)
    rows = {
        "fits": ["yes" if one.fits else "NO" for one in found],
        "fullest in": [one.memory.moment for one in found],
        "windows": [f"{one.way.rows:,}" for one in found],
        "tokens a step": [f"{one.tokens_per_step:,}" for one in found],
        "steps": [f"{one.steps:,}" for one in found],
    }
    if plan.devices > 1:
        rows["GB sent a step"] = [gigabytes(sum(one.sent_per_step.values())) for one in found]
    rows["arithmetic"] = [duration(one.arithmetic_seconds) for one in found]
    if found[0].network_seconds is not None:
        rows["network"] = [duration(one.network_seconds or 0.0) for one in found]
    for name, values in rows.items():
        table.add_row(name, *values)
    console.print(table)
    per_device = plan.flops_per_second / plan.devices / 1e12
    console.print(
        f"fits: leaves a tenth free for what is not counted{' · windows: the most that fit' if most else ''}\n"
        f"arithmetic: {plan.flops:.3g} operations in matrix products (6·parameters·tokens: "
        f"{plan.flops_6nd:.3g}), more when recomputing, at {per_device:.0f} TFLOP/s a device, which is an "
        "assumption (--peak-tflops, --peak-share)"
        + ("; the network may work at the same time" if "network" in rows else ""),
    )
    if plan.command is None:
        console.print("nothing fits: take fewer windows (--batch-size) or more devices, or FSDP with --cpu-offload")
    else:
        console.print(f"the first that fits; its learning rate is yours to choose:\n{plan.command}")


def gigabytes(size: float) -> str:
    """Three digits."""
    return f"{size / 1e9:,.0f}" if size >= 1e11 else f"{size / 1e9:.3g}"


def duration(seconds: float) -> str:
    """In the largest unit that fits."""
    for unit, length in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"
