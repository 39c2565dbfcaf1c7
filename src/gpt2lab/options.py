"""One declaration per option: what it means, what it may be, and who may change it.

An option is a field of a frozen dataclass, declared with :func:`option`. Flags, files of settings, keywords, help, the
arms of a comparison and the docs are made from these declarations. :func:`converted` brings a value from a flag, a file
or Python to the declared type, the same way for all three; :func:`check` then looks at types and limits.
"""

import dataclasses
import difflib
import inspect
import math
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field
from pathlib import Path
from typing import Any, Concatenate, Literal, ParamSpec, TypeVar, Union, get_args, get_origin, get_type_hints

from gpt2lab.errors import InputError
from gpt2lab.reading import MOST_WHOLE, shortly

# What nanoGPT, Transformers, the APIs of servers, and habit call our options.
ELSEWHERE: Mapping[str, tuple[str, ...]] = {
    "accumulation_steps": ("gradient_accumulation_steps", "grad_accum"),
    "batch_size": ("per_device_train_batch_size", "micro_batch_size"),
    "contexts": ("block_size", "context", "context_size"),
    "context_size": ("block_size", "context", "context_length", "ctx", "n_ctx", "seq_len", "sequence_length"),
    "embed_dim": ("n_embd", "d_model", "hidden_size", "width", "dim"),
    "eval_every": ("eval_interval", "eval_steps"),
    "checkpoint_every": ("save_every", "save_steps"),
    "ff_hidden_dim": ("intermediate_size", "d_ff"),
    "grad_norm_clip": ("grad_clip", "max_grad_norm"),
    "learning_rate": ("lr",),
    "max_epochs": ("epochs", "num_train_epochs"),
    "max_steps": ("steps", "iters", "max_iters", "num_steps"),
    "num_heads": ("n_head", "heads", "num_attention_heads"),
    "num_kv_heads": ("n_kv_head", "kv_heads", "num_key_value_heads"),
    "num_layers": ("n_layer", "layers", "depth", "num_hidden_layers"),
    "num_samples": ("n", "samples"),
    "out": ("out_dir", "output", "output_dir", "o"),
    "prompt": ("start",),
    "steps": ("iters", "max_iters", "num_steps"),
    "text": ("data", "dataset", "file", "input"),
    "tokens": ("max_tokens", "max_new_tokens", "n_predict", "length"),
    "warmup_steps": ("warmup", "warmup_iters"),
    "window": ("sliding_window", "window_size"),
}

P = ParamSpec("P")
R = TypeVar("R")

# Who decides on an option in a comparison: an arm or all of them ("any"), an arm alone ("arm"), all arms together
# ("all"), or the comparison with an option of its own, such as contexts for context_size ("none").
InComparison = Literal["any", "arm", "all", "none"]


MOST_SECONDS = 1e9  # thirty years: what can be waited for without overflowing a timer


@dataclass(frozen=True)
class Option:
    """What is declared of an option besides its name, type and default.

    Attributes:
        meaning: for help and docs.
        least, above, most, below: limits of a number.
        on_resume: whether a run that goes on may have another value.
        in_comparison: who decides on it in a comparison.
        parse: reads the value where its type alone does not say how, such as ``"128,128,full"``.
        spell: the inverse of ``parse``, for flags and files.
        older: older names of the option.
        spellings: other ways to write a value.
        default: in words, where the default is no plain value.
        flag: whether the command line has it.
    """

    meaning: str
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    on_resume: bool = False
    in_comparison: InComparison = "any"
    parse: Callable[[Any], Any] | None = None
    spell: Callable[[Any], Any] | None = None
    older: tuple[str, ...] = ()
    spellings: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default: str | None = None
    flag: bool = True


def option(value: Any = MISSING, meaning: str = "", **declared: Any) -> Any:
    """A field of a settings class: its default (without one it has to be given), and what :class:`Option` declares."""
    return field(default=value, metadata={"option": Option(meaning, **declared)})


def declared(of: Field[Any]) -> Option:
    """What was declared of a field."""
    found: Option = of.metadata["option"]
    return found


def options_of(*kinds: type) -> dict[str, tuple[Any, Field[Any]]]:
    """Type and field of every option of these settings classes, by name."""
    found: dict[str, tuple[Any, Field[Any]]] = {}
    for kind in kinds:
        hints = get_type_hints(kind)
        found |= {of.name: (hints[of.name], of) for of in dataclasses.fields(kind) if "option" in of.metadata}
    return found


def part(options: Mapping[str, Any], kind: type) -> dict[str, Any]:
    """Those of the options that a settings class declares."""
    return {name: options[name] for name in options_of(kind) if name in options}


def given_options(kinds: Iterable[type], given: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The options that are given, under their names of today and converted to their types.

    Args:
        kinds: the settings classes that declare them.
        given: values by name; older names and spellings count.
        where: where they stand, for messages, such as the path of a file.

    Raises:
        InputError: an unknown name, with a suggestion, or a value that the option cannot have.
    """
    known = options_of(*kinds)
    today = {older: name for name, (_, of) in known.items() for older in declared(of).older} | {n: n for n in known}
    place = f"{where}: " if where else ""
    found: dict[str, Any] = {}
    for name, value in given.items():
        if name not in today:
            raise InputError(f"{place}there is no option {shortly(name)}{meant(str(name)[:60], known, flags=True)}")
        kind, of = known[today[name]]
        if today[name] in found:
            raise InputError(f"{place}{name} and {today[name]} are the same option; give one of them")
        try:
            found[today[name]] = converted(today[name], kind, declared(of), value)
        except InputError as error:
            raise InputError(f"{place}{error}") from None
    return found


def meant(name: str, known: Iterable[str], flags: bool = False) -> str:
    """The end of a sentence about an unknown name: the one that was meant (as a flag, too), or all that are known."""
    known = [*known]
    if (close := closest(name, known)) is None:
        return f"; known are {', '.join(sorted(known))}"
    flag = f" (--{close.replace('_', '-')})" if flags else ""
    return f"; did you mean {close}{flag}?"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The known name that an unknown one stands for: in other programs, or with a slip of the finger."""
    known = [*known]
    elsewhere = (ours for ours, theirs in ELSEWHERE.items() if name in theirs and ours in known)
    return next(elsewhere, None) or next(iter(difflib.get_close_matches(name, known, 1)), None)


def spelled(settings: Any) -> dict[str, Any]:
    """The options of a settings object as flags and files have them; the inverse of :func:`given_options`."""
    kind = type(settings)
    return spelled_options(kind, {name: getattr(settings, name) for name in options_of(kind)})


def spelled_options(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Some options of a settings class as flags and files have them."""
    spell = {name: declared(of).spell or (lambda value: value) for name, (_, of) in options_of(kind).items()}
    found = {name: spell[name](value) for name, value in values.items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}


def converted(name: str, kind: Any, about: Option, value: Any) -> Any:
    """A value as the option's type has it, from text, YAML, TOML or Python.

    Raises:
        InputError: it cannot be brought to that type.
    """
    if isinstance(value, str):
        value = about.spellings.get(value.lower(), value)
    if about.parse is not None:
        return about.parse(value)
    kinds = alternatives(kind)
    if value is None and type(None) in kinds:
        return None
    for one in kinds:
        if (found := _as(one, value)) is not None:
            return found
    raise InputError(f"{name} is {shortly(value)}; it has to be {expected(kind, about)}")


def alternatives(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the one that it is."""
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _as(kind: Any, value: Any) -> Any:  # noqa: PLR0911
    """The value as that kind, or None if it is none."""
    if get_origin(kind) is Literal:
        if isinstance(value, bool):  # YAML reads a bare yes or no so
            value = "yes" if value else "no"
        return value if value in get_args(kind) else None
    if get_origin(kind) is tuple:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, list | tuple) or len(parts) != len(get_args(kind)):
            return None
        items = tuple(_as(one, part) for one, part in zip(get_args(kind), parts, strict=True))
        return None if None in items else items
    if kind is bool:
        return _TRUTHS.get(value.lower()) if isinstance(value, str) else value if isinstance(value, bool) else None
    if kind in (int, float):
        return _number(kind, value)
    if kind in (Path, str) and isinstance(value, str | Path):
        if not _can_be_written(str(value)):
            return None
        return Path(value).expanduser() if kind is Path else str(value)
    return value if isinstance(kind, type) and isinstance(value, kind) else None


def _can_be_written(text: str) -> bool:
    """Whether text can be a file's name and stand in a file. (Names that are no UTF-8 come as surrogates.)"""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return "\0" not in text


_TRUTHS = {"yes": True, "true": True, "no": False, "false": False}


def _number(kind: type, value: Any) -> int | float | None:
    if isinstance(value, str):
        try:
            value = int(value) if value.strip().lstrip("+-").isdigit() else float(value)
        except ValueError:
            return None
        if kind is int and isinstance(value, float) and math.isfinite(value) and value.is_integer():
            value = int(value)  # 1e6
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return None
    return value


def check(settings: Any) -> None:
    """Look at type and limits of every option of a settings object.

    Raises:
        InputError: naming the first that is wrong, its value, and what it has to be.
    """
    for name, (kind, of) in options_of(type(settings)).items():
        check_value(name, kind, declared(of), getattr(settings, name))


def check_value(name: str, kind: Any, about: Option, value: Any) -> None:
    """Look at type and limits of one option; ``name`` is how the message calls it.

    Raises:
        InputError: naming the option, its value, and what it has to be.
    """
    kinds = alternatives(kind)
    if about.parse is not None or (value is None and type(None) in kinds):
        return
    exact = not isinstance(value, str) or not {int, float, bool} & set(kinds)  # text is converted before, or wrong
    if not exact or all(_as(one, value) is None for one in kinds) or not _within(value, about):
        raise InputError(f"{name} is {shortly(value)}; it has to be {expected(kind, about)}")


def _within(value: Any, about: Option) -> bool:
    if isinstance(value, tuple):
        return all(_within(one, about) for one in value)
    if not isinstance(value, int | float):
        return True
    return (
        (abs(value) < MOST_WHOLE if isinstance(value, int) else math.isfinite(value))
        and (about.least is None or value >= about.least)
        and (about.above is None or value > about.above)
        and (about.most is None or value <= about.most)
        and (about.below is None or value < about.below)
    )


def expected(kind: Any, about: Option) -> str:
    """What a value has to be, in words: ``a whole number, 1 or more``."""
    kinds = alternatives(kind)
    if get_origin(kind) is tuple:
        return f"{len(get_args(kind))} numbers, each {limits(about)}"
    choices = [str(choice) for one in kinds if get_origin(one) is Literal for choice in get_args(one)]
    if choices:
        return f"one of {', '.join(choices)}"
    words = "a whole number" if int in kinds else "a number" if float in kinds else ""
    words = words or ("yes or no" if bool in kinds else "text")
    return f"{words}, {limits(about)}" if limits(about) else words


def limits(about: Option) -> str:
    """The limits of a number in words: ``1 or more``, ``above 0 and at most 1``."""
    least, above, most, below = (
        None if bound is None else f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"
        for bound in (about.least, about.above, about.most, about.below)
    )
    low = f"above {above}" if above else f"at least {least}" if least else ""
    high = f"below {below}" if below else f"at most {most}" if most else ""
    return f"{least} or more" if least and not high else " and ".join(filter(None, (low, high)))


def taking(options: Callable[P, object]) -> Callable[[Callable[..., R]], Callable[P, R]]:
    """Give a function of ``**given`` the keywords of a settings class, for editors, type checkers and readers.

    What is not given does not reach the function: it can tell a default from a wish.
    """

    def decorate(function: Callable[..., R]) -> Callable[P, R]:
        parameters = [p.replace(kind=p.KEYWORD_ONLY) for p in inspect.signature(options).parameters.values()]
        _sign(function, parameters)
        return function

    return decorate


def method_taking(
    options: Callable[P, object], first: str = "self"
) -> Callable[[Callable[..., R]], Callable[Concatenate[Any, P], R]]:
    """The same for a method, whose options may be given without their names, as the class has them; or for a function
    with one argument, called ``first``, before the options."""

    def decorate(method: Callable[..., R]) -> Callable[Concatenate[Any, P], R]:
        own = inspect.Parameter(first, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        keywords = [*inspect.signature(options).parameters.values()]
        if first != "self":
            keywords = [p.replace(kind=p.KEYWORD_ONLY) for p in keywords]
        _sign(method, [own, *keywords])
        return method

    return decorate


def _sign(function: Callable[..., object], parameters: list[inspect.Parameter]) -> None:
    returned = inspect.signature(function).return_annotation
    function.__signature__ = inspect.Signature(parameters, return_annotation=returned)  # type: ignore[attr-defined]
