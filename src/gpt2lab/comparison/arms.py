"""The arms of a comparison, from flags, files and Python, and the claims about them: looked at before anything runs."""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from gpt2lab.comparison.settings import BASELINE, Claim, GridSettings, MeasureName, Options, RunningSettings
from gpt2lab.config import Variant, random_architecture
from gpt2lab.errors import InputError
from gpt2lab.options import declared, given_options, meant, options_of, spelled_options
from gpt2lab.reading import read_settings
from gpt2lab.runs.settings import SETTINGS, ModelSettings

MOST_RANDOM = 1_000

# Who may decide on an option: an arm, or not an arm alone.
_DECIDE = {name: declared(of).in_comparison for name, (_, of) in options_of(*SETTINGS).items()}
ARM_OPTIONS = {name for name, who in _DECIDE.items() if who in ("any", "arm")}
ARM_CHOICES = {name for name, who in _DECIDE.items() if who in ("arm", "none")}  # what cannot be shared by all arms


def read_file(path: Path) -> tuple[dict[str, Options], Sequence[Mapping[str, object]], dict[str, Any]]:
    """The arms, the claims and all other options of a file such as those in ``experiments/``.

    Raises:
        InputError: the file is missing or damaged, or an option of it is.
    """
    written = read_settings(path)
    arms, claims = written.pop("arms", None) or {}, written.pop("claims", None) or []
    written.pop("settled_steps", None)  # of comparison.yaml: what the clock settled there
    if not isinstance(arms, dict):
        raise InputError("arms have to be names with options below them")
    for name, options in arms.items():
        if not isinstance(options, dict | None):
            raise InputError(f"the arm {name} has to hold options, one `name: value` a line, not {options!r}")
        _check_values(f"{path}: the arm {name}", options or {})
    if not isinstance(claims, list) or not all(isinstance(claim, dict) for claim in claims):
        raise InputError("claims have to be a list, each with says, arm and measure")
    options = given_options((GridSettings, RunningSettings, *SETTINGS), written, str(path))
    return {str(name): options or {} for name, options in arms.items()}, claims, options


def with_original(arms: Mapping[str, Options]) -> dict[str, Options]:
    """The arms of the command line: GPT-2 itself comes first, whatever else there is.

    Raises:
        InputError: there is nothing to compare it with, or an arm has its name.
    """
    if not arms.keys() - {BASELINE}:
        raise InputError(f"there is nothing to compare {BASELINE} with; name other --variants, an --arm, or --random N")
    if arms.get(BASELINE, {}) not in ({}, {"variant": BASELINE}):
        raise InputError(
            f"the arm {BASELINE} is GPT-2 itself, which the others are compared with; call yours otherwise"
        )
    return {BASELINE: {"variant": BASELINE}} | {name: options for name, options in arms.items() if name != BASELINE}


def named_variants(names: Sequence[str]) -> dict[str, Options]:
    """An arm for each named variant."""
    for name in names:
        if name not in get_args(Variant):
            raise InputError(f"--variants: unknown arm {name!r}{meant(name, get_args(Variant))}")
    return {name: {"variant": name} for name in names}


def typed_arms(specs: Sequence[str]) -> dict[str, Options]:
    """The options of each arm, from ``name=file.py:ClassName,option=value,…``; a variant may stand for the class.

    A part without ``=`` belongs to the option before it: ``window=16,16,full``.
    """
    return {name: _typed_arm(name, written) for name, _, written in (spec.partition("=") for spec in specs)}


def _typed_arm(name: str, written: str) -> Options:
    options: dict[str, str] = {}
    last = None  # the option that takes a part without =
    for number, part in enumerate(written.split(",")):
        option, equals, value = (each.strip() for each in part.partition("="))
        option = option.removeprefix("--").replace("-", "_")
        if equals and option.isidentifier() and option not in options:
            options[option], last = value, option
        elif number == 0 and (":" in part or part in get_args(Variant)):
            options["attention" if ":" in part else "variant"] = part
        elif last is not None and part and not equals:
            options[last] += f",{part}"
        else:
            raise InputError(
                f"--arm {name}={written}: {part!r} is not understood; write name=file.py:ClassName, or name=rope for a "
                "variant, and its own options after it: name=file.py:ClassName,position=none"
            )
    return options


def random_arms(count: int, seed: int, contexts: Sequence[int]) -> dict[str, Options]:
    """Different random architectures, a function of the seed."""
    if count and len(contexts) > 1:
        raise InputError("random architectures are drawn for one context; give one with --contexts")
    if not 0 <= count <= MOST_RANDOM:
        raise InputError(f"--random is {count}; it has to be a whole number, at most {MOST_RANDOM:,}")
    draws = (random_architecture(seed + number, contexts[0]) for number in itertools.count(1))
    distinct: list[dict[str, object]] = []
    while len(distinct) < count:
        drawn = spelled_options(ModelSettings, next(draws))
        if drawn not in distinct:
            distinct.append(drawn)
    return {f"random-{number}": drawn for number, drawn in enumerate(distinct, 1)}


def check_arms(arms: Mapping[str, Options]) -> dict[str, Options]:
    """The arms, each with a name that a folder can have and options that an arm may have.

    Raises:
        InputError: one that has not, or fewer than two arms.
    """
    if len(arms) < 2:
        raise InputError("a comparison needs two arms or more: the first is what the others are compared with")
    for name, options in arms.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w.+-]+", name) or set(name) == {"."}:
            raise InputError(f"the arm {name!r} names a folder, so use letters, digits and . _ + -")
        if not isinstance(options, Mapping):
            raise InputError(f"the arm {name} has to hold options by name, not {options!r}")
        for option in options.keys() - ARM_OPTIONS:
            raise InputError(f"the arm {name} has an unknown option {option!r}{meant(str(option), ARM_OPTIONS)}")
        _check_values(f"the arm {name}", options)
    return {name: _with_whole_path(options) for name, options in arms.items()}


def _check_values(where: str, options: Options) -> None:
    """Refuse what no option of that name can be."""
    given_options(SETTINGS, {name: value for name, value in options.items() if name in ARM_OPTIONS}, where)


def _with_whole_path(options: Options) -> Options:
    """The same, its attention's file named so that it is found from any folder."""
    if not isinstance(spec := options.get("attention"), str):
        return options
    file, _, class_name = spec.rpartition(":")
    return {**options, "attention": f"{Path(file).expanduser().resolve()}:{class_name}"}


def check_claims(
    claims: Sequence[Claim | Mapping[str, object]], arms: Mapping[str, Options], contexts: Sequence[int], baseline: str
) -> tuple[Claim, ...]:
    """The claims, each checked to be about an arm, a measure and a context that are there."""
    found: dict[tuple[str, str, int], Claim] = {}
    for given in claims:
        try:
            claim = Claim(**(asdict(given) if isinstance(given, Claim) else given))
        except TypeError:
            raise InputError(f"the claim {given!r} needs says, arm and measure, and may have a context") from None
        if not isinstance(claim.arm, str) or claim.arm not in arms or claim.arm == baseline:
            raise InputError(f"a claim is about the arm {claim.arm!r}{meant(str(claim.arm), arms)}")
        if claim.measure not in get_args(MeasureName):
            raise InputError(f"a claim measures {claim.measure!r}{meant(str(claim.measure), get_args(MeasureName))}")
        if claim.context not in (None, *contexts):
            raise InputError(f"a claim is about a context of {claim.context}, which is not in --contexts")
        if claim.expects not in ("less", "more"):
            raise InputError(f"a claim expects {claim.expects!r}; it has to be less or more")
        place = claim.arm, claim.measure, claim.context or contexts[0]
        if place in found:
            raise InputError(f"two claims are about the same: {', '.join(map(str, place))}")
        found[place] = claim
    return tuple(found.values())
