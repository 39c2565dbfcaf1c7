"""What a comparison is asked: its arms, from flags and files, and the claims about them."""

import difflib
import itertools
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

from gpt2lab.cli.grid import Options
from gpt2lab.config import Variant, random_architecture, spell_position, spell_window
from gpt2lab.errors import InputError
from gpt2lab.evaluation.compare import BASELINE, Claim, MeasureName
from gpt2lab.options import declared, options_of
from gpt2lab.runs.settings import SETTINGS

ARM_OPTIONS = {n for n, (_, of) in options_of(*SETTINGS).items() if declared(of).in_comparison in ("any", "arm")}


def read_arms(
    variants: list[str] | None,
    own: list[str] | None,
    written: object,
    random: int,
    seed: int,
    contexts: list[int],
) -> dict[str, Options]:
    """Options of every arm by its name, the original first."""
    arms: dict[str, Options] = {}
    if variants is None and not (own or written or random):
        variants = list(get_args(Variant))
    for name in variants or ():
        if name not in get_args(Variant):
            raise InputError(f"--variants: unknown arm {name!r}{_meant(name, get_args(Variant))}")
        arms[name] = {"variant": name}
    if not isinstance(written, dict | None):
        raise InputError("arms have to be names with options below them")
    for name, options in (written or {}).items():
        if not isinstance(options, dict | None):
            raise InputError(f"the arm {name} has to hold options, one `name: value` a line, not {options!r}")
        arms[str(name)] = dict(options or {})
    for spec in own or ():
        name, equals, attention = spec.partition("=")
        if not equals:
            raise InputError(f"--arm {spec}: write it as name=file.py:ClassName")
        arms[name] = {"attention": attention}
    if random and len(contexts) > 1:
        raise InputError("random architectures are drawn for one context; give one with --contexts")
    arms |= _drawn(random, seed, contexts[0])
    _check_arms(arms)
    if not arms.keys() - {BASELINE}:
        raise InputError(f"there is nothing to compare {BASELINE} with; name other --variants, an --arm, or --random N")
    if arms.pop(BASELINE, {"variant": BASELINE}) not in ({}, {"variant": BASELINE}):
        raise InputError(
            f"the arm {BASELINE} is GPT-2 itself, which the others are compared with; call yours otherwise"
        )
    return {BASELINE: {"variant": BASELINE}} | arms


def _drawn(count: int, seed: int, context: int) -> dict[str, Options]:
    """Different random architectures, a function of the seed."""
    draws = (random_architecture(seed + number, context) for number in itertools.count(1))
    distinct: list[Options] = []
    while len(distinct) < count:
        if (drawn := next(draws)) not in distinct:
            distinct.append(drawn)
    return {
        f"random-{n}": drawn | {"window": spell_window(drawn["window"]), "position": spell_position(drawn["position"])}
        for n, drawn in enumerate(distinct, 1)
    }


def _check_arms(arms: dict[str, Options]) -> None:
    for name, options in arms.items():
        if not re.fullmatch(r"[\w.+-]+", name):
            raise InputError(f"the arm {name!r} names a folder, so use letters, digits and . _ + -")
        for option in options.keys() - ARM_OPTIONS:
            raise InputError(f"the arm {name} has an unknown option {option!r}{_meant(str(option), ARM_OPTIONS)}")
        if "attention" in options:
            file, _, class_name = str(options["attention"]).rpartition(":")
            options["attention"] = f"{Path(file).resolve()}:{class_name}"


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), 1)
    return f"; did you mean {close[0]}?" if close else f"; known are {', '.join(sorted(known))}"


def read_claims(written: object, arms: dict[str, Options], contexts: list[int]) -> list[dict[str, Any]]:
    """The claims of a file, each checked to be about an arm, a measure and a context that are there."""
    if not isinstance(written, list | None):
        raise InputError("claims have to be a list, each with says, arm and measure")
    declared: set[tuple[str, str, int]] = set()
    for claim in written or ():
        try:
            parsed = Claim(**claim)
        except TypeError:
            raise InputError(f"the claim {claim!r} needs says, arm and measure, and may have a context") from None
        if not isinstance(parsed.arm, str) or parsed.arm not in arms or parsed.arm == BASELINE:
            raise InputError(f"a claim is about the arm {parsed.arm!r}{_meant(str(parsed.arm), arms)}")
        if parsed.measure not in get_args(MeasureName):
            raise InputError(f"a claim measures {parsed.measure!r}{_meant(str(parsed.measure), get_args(MeasureName))}")
        if parsed.context not in (None, *contexts):
            raise InputError(f"a claim is about a context of {parsed.context}, which is not in --contexts")
        if parsed.expects not in ("less", "more"):
            raise InputError(f"a claim expects {parsed.expects!r}; it has to be less or more")
        contrast = parsed.arm, parsed.measure, parsed.context or contexts[0]
        if contrast in declared:
            raise InputError(f"two claims are about the same: {', '.join(map(str, contrast))}")
        declared.add(contrast)
    return written or []
