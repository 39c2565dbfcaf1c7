"""Flags from declarations: a command's options are made from the settings classes that declare them."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, get_origin

from cyclopts import Group, Parameter, Token

from gpt2lab.options import Option, alternatives, check_value, converted, declared, options_of

Command = TypeVar("Command", bound=Callable[..., int])
NOT_TYPED: Any = object()  # None is a value: it is what --window full means


class _CheckedByUs:
    """Where something has imported pydantic, the parser lets it check all values; :func:`_read` has checked ours."""

    def __get_pydantic_core_schema__(self, *_: object) -> dict[str, str]:
        return {"type": "any"}


def with_flags(
    groups: Mapping[str, type], leave_out: Collection[str] = (), defaults: Mapping[str, str] = MappingProxyType({})
) -> Callable[[Command], Command]:
    """Give a command every option of some settings classes: its argument ``options`` holds those that were typed.

    Args:
        groups: settings classes by the heading that help shows them under, in its order.
        leave_out: options that the command has not, or has otherwise.
        defaults: what help shows as default, where the command has another one.
    """
    made: dict[str, Any] = {}
    for order, (title, settings) in enumerate(groups.items(), 1):
        group = Group(title, sort_key=order)
        own = vars(settings)["__annotations__"]
        for name, (hint, of) in sorted(options_of(settings).items(), key=lambda one: one[0] not in own):
            about = declared(of)
            if about.flag and name not in leave_out and name not in made:  # the first group that has it shows it
                shown = about.default or (None if of.default is None else _word(of.default))
                made[name] = _flag(name, hint, about, group, defaults.get(name, shown))
    kind = dataclasses.make_dataclass("Flags", [(name, flag, NOT_TYPED) for name, flag in made.items()], frozen=True)
    kind.__module__ = __name__  # else it passes for one of Python's own types

    def decorate(command: Command) -> Command:
        command.__annotations__["options"] = Annotated[kind, Parameter(name="*"), _CheckedByUs()]
        return command

    return decorate


def given(flags: object) -> dict[str, Any]:
    """The options that were typed."""
    return {} if flags is None else {name: value for name, value in vars(flags).items() if value is not NOT_TYPED}


def _flag(name: str, hint: Any, about: Option, group: Group, shown: str | None) -> Any:
    kinds = [kind for kind in alternatives(hint) if kind not in (type(None), type)]
    several = any(get_origin(one) is tuple for one in kinds)  # with commas or with spaces
    kind = list[str] if several else str if about.parse is not None or str in kinds else kinds[0]
    parameter = Parameter(
        help=about.meaning,
        alias=[f"--{older.replace('_', '-')}" for older in about.older],
        group=group,
        show_default=(lambda _: shown) if shown is not None else False,
        negative=f"--no-{name.replace('_', '-')}" if kind is bool else (),
        converter=None if kind is bool else partial(_read, name, hint, about),
        allow_leading_hyphen=kind in (int, float),
        consume_multiple=several,
    )
    return Annotated[kind | None, parameter, _CheckedByUs()]


def _read(name: str, hint: Any, about: Option, _: object, tokens: Sequence[Token]) -> Any:
    flag = f"--{name.replace('_', '-')}"
    value = converted(flag, hint, about, ",".join(token.value for token in tokens))
    check_value(flag, hint, about, value)
    return value


def _word(value: object) -> str:
    """A default as it is typed."""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
