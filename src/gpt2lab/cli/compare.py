"""``gpt2lab compare``: the same training for several models, and what their differences are worth."""

from pathlib import Path
from typing import Annotated, get_args

from cyclopts import Group, Parameter

from gpt2lab.cli.options import given, with_flags
from gpt2lab.cli.report import tell
from gpt2lab.cli.screen import errors
from gpt2lab.comparison.arms import ARM_CHOICES, named_variants, random_arms, read_file, typed_arms, with_original
from gpt2lab.comparison.settings import GridSettings, Options, RunningSettings
from gpt2lab.config import Variant
from gpt2lab.options import options_of
from gpt2lab.runs.settings import DataSettings, ModelSettings, TrainerConfig

ARMS = Parameter(group=Group("Arms", sort_key=0), negative=())
GROUPS = {"Grid": GridSettings, "Running": RunningSettings}
SHARED = {"Model": ModelSettings, "Text": DataSettings, "Training": TrainerConfig}


@with_flags(GROUPS | SHARED, ARM_CHOICES - options_of(RunningSettings).keys(), defaults={"out": "runs/compare"})
def compare(
    *,
    variants: Annotated[str | None, ARMS] = None,
    arm: Annotated[list[str] | None, ARMS] = None,
    random: Annotated[int, ARMS] = 0,
    config: Annotated[Path | None, ARMS] = None,
    json_output: Annotated[bool, Parameter(name="--json", negative=())] = False,
    options: object = None,
) -> int:
    """Find out what a switch really does: train several variants alike, and measure them on text they have not seen.

    Every arm gets the same data in the same order, the same seeds and the same number of tokens. It differs only in
    what it names from "original", which is always there. Each cell (arm, context, seed) is an ordinary run folder.
    Stopped, the same command goes on. Afterwards all arms are timed in turn, and a report is written: report.html,
    results.csv, results.json.

    A file (--config) can also hold "arms", each with any options of `gpt2lab train`, and "claims", each with an arm
    and a measure, which the report answers in a sentence. All other options are shared by all arms.

    Parameters
    ----------
    variants
        Named variants, with commas; default: all of them, unless a file, --arm or --random names others.
    arm
        One more arm, with your own attention and options of its own: "name=file.py:ClassName,position=none". A variant
        can stand for the class: "narrow=swa,window=8,8,full". Can be repeated.
    random
        Add that many random architectures, drawn with --seed, at one context.
    config
        YAML or TOML file with any of these options; flags override it.
    json_output
        Print the verdicts as JSON at the end, and nothing else.
    """
    from gpt2lab.comparison.design import merged_options
    from gpt2lab.comparison.run import compare as compare_models

    typed = given(options)
    in_file, claims, written = ({}, (), {}) if config is None else read_file(config)
    asked = merged_options(written, typed)
    own = typed_arms(arm or ())
    if variants is None and not (own or in_file or random):
        variants = ",".join(get_args(Variant))
    arms: dict[str, Options] = {**named_variants(_names(variants)), **in_file}
    arms |= {name: {**arms.get(name, {}), **of_arm} for name, of_arm in own.items()}
    arms |= random_arms(random, asked.get("seed", 0), asked.get("contexts", GridSettings.contexts))
    if json_output:
        asked["progress"] = lambda *_: None
    found = compare_models(with_original(arms), claims=claims, **asked)
    tell(found, json_output)
    if found.failed:
        errors.print(f"{len(found.failed)} cells failed; the same command tries them again")
    nothing_left = found.results.disqualified and not found.verdicts
    return 1 if found.failed or nothing_left else 0


def _names(variants: str | None) -> list[str]:
    return [name.strip() for name in (variants or "").split(",") if name.strip()]
