"""The design of a comparison, put together from Python, a file or a folder, and checked before anything runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gpt2lab.comparison.arms import ARM_CHOICES, check_claims, read_file, with_original
from gpt2lab.comparison.folder import COMPARISON, read_design
from gpt2lab.comparison.settings import BASELINE, Claim, Design, GridSettings, Options
from gpt2lab.config import Switches
from gpt2lab.errors import InputError
from gpt2lab.options import given_options, meant, options_of, part
from gpt2lab.runs.settings import SETTINGS, DataSettings, ModelSettings, TrainerConfig

# Switches that the original may share: it has no rotation, and with the others it is GPT-2 still.
STILL_GPT2 = {"rope_theta", "rope_fraction", "dropout", "layer_norm_epsilon"}

Claims = Sequence[Claim | Mapping[str, object]]


def named(
    arms: Mapping[str, Options] | str | Path,
) -> tuple[Mapping[str, Options], Claims, Mapping[str, Any]]:
    """The arms, claims and options of Python, of a file, or of a folder with a comparison."""
    if isinstance(arms, Mapping):
        return arms, (), {}
    if (path := Path(arms)).is_file():
        named, claims, options = read_file(path)
        return with_original(named), claims, options
    before = read_design(path)
    written = given_options((GridSettings, *SETTINGS), before.options, str(path / COMPARISON))
    return before.arms, before.claims, written


def merged_options(written: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a file, and those that are given beside it, which count more.

    A text or a length that is given takes the place of the file's, even if that is an option of another name.
    """
    alike = (("text", "corpus", "text_sha256"), ("steps", "tokens", "minutes", "max_steps"))
    replaced = {name for names in alike if given.keys() & set(names) for name in names}
    return {name: value for name, value in written.items() if name not in replaced} | dict(given)


def design_of(arms: Mapping[str, Options], claims: Claims, options: Mapping[str, Any]) -> tuple[Design, Path]:
    """The design, checked, and the folder for it."""
    shared = {name: value for name, value in options.items() if name in options_of(*SETTINGS)}
    sizes = part(options, GridSettings)
    out = Path(shared.pop("out", None) or "runs/compare")
    shared.pop("threads", None)  # each training gets them from the comparison
    if (steps := shared.pop("max_steps", None)) is not None:  # the same by another name
        sizes.setdefault("steps", steps)
    grid = GridSettings(**sizes)
    default = ModelSettings()
    if any(shared.get(name, getattr(default, name)) != getattr(default, name) for name in ARM_CHOICES & {*shared}):
        raise InputError("in a comparison, use --variants, --arm, --random N and --contexts")
    if next(iter(arms), None) == BASELINE:
        _check_original(shared)
    data, training = DataSettings(**part(shared, DataSettings)), TrainerConfig(**part(shared, TrainerConfig))
    if training.max_epochs is not None:
        raise InputError("a comparison counts --steps, --tokens or --minutes, not epochs")
    if data.validation_fraction == 0 or data.test_fraction == 0:
        raise InputError("a comparison needs a validation and a test part; leave their fractions above 0")
    return Design(arms, check_claims(claims, arms, grid.contexts, next(iter(arms))), grid, shared), out


def _check_original(shared: Options) -> None:
    """What all arms share leaves the original what its name says."""
    for name, (_, of) in options_of(Switches).items():
        if name not in STILL_GPT2 and shared.get(name, of.default) != of.default:
            raise InputError(
                f"--{name.replace('_', '-')} for all arms would change {BASELINE}, which is GPT-2 itself; give it to "
                f"the arms that it is for: --arm mine=rope,{name}=…"
            )


def with_own(
    arms: Mapping[str, Options], own: Mapping[str, str | type], named_by_folder: bool
) -> Mapping[str, Options]:
    """The arms with their own attention, as the caller gives it."""
    for arm in own:
        if arm not in arms:
            raise InputError(f"attentions names an arm {arm!r} that is not there{meant(arm, arms)}")
    for arm, options in arms.items():
        if named_by_folder and "attention" in options and arm not in own:
            raise InputError(
                f"the arm {arm} has an attention of its own, which is never run from a folder; give it again: "
                f"attentions={{{arm!r}: …}}, or --config with the file that names it"
            )
    return {arm: {**options, "attention": own[arm]} if arm in own else options for arm, options in arms.items()}
