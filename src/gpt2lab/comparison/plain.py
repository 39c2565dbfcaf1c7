"""Typed values from plain ones, as JSON has them: whole and right, or refused in a sentence that says where."""

import dataclasses
import json
import math
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from gpt2lab.errors import InputError

T = TypeVar("T")


def loads(text: str) -> object:
    """A JSON text; NaN and Infinity, which are none, are refused.

    Raises:
        ValueError: it is damaged.
    """

    def refuse(name: str) -> object:
        raise ValueError(f"{name} is no number in JSON")

    try:
        return json.loads(text, parse_constant=refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(kind: type[T], path: Path) -> T:
    """What a JSON file holds, as that type.

    Raises:
        InputError: the file is missing, no JSON, or holds something else.
    """
    try:
        value = loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except ValueError as error:
        raise InputError(f"{path} is damaged: {' '.join(str(error).split())}") from None
    return typed(kind, value, str(path))


def typed(kind: type[T], value: object, where: str) -> T:
    """A plain value as that type: a dataclass, a list, tuple or dict of such, a Literal, a union, or a plain type.

    A number stays what it is: an int that stands for a float is not turned into one. Names that a dataclass does not
    have are passed over.

    Raises:
        InputError: it is none.
    """
    return cast(T, _typed(kind, value, where))


def _typed(kind: Any, value: Any, where: str) -> Any:  # noqa: PLR0911
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is object:
        return value
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        return _dataclass(kind, value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (one,) = [one for one in arguments if one is not type(None)]
        return _typed(one, value, where)
    if origin is Literal and value in arguments:
        return value
    if origin is list and isinstance(value, list):
        return [_typed(arguments[0], one, where) for one in value]
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            return tuple(_typed(one, item, where) for one, item in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {_key(arguments[0], key, where): _typed(arguments[1], one, where) for key, one in value.items()}
    if kind in (str, bool, int) and type(value) is kind:
        return value
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return value
    words = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    expected = words.get(kind, "a list" if origin in (list, tuple) else "something else")
    raise InputError(f"{where} is damaged: {str(value)[:40]!r} stands where {expected} has to be")


def _key(kind: type, key: str, where: str) -> str | int:
    if kind is not int:
        return key
    try:
        return int(key)
    except ValueError:
        raise InputError(f"{where} is damaged: {key[:40]!r} stands where a whole number has to be") from None


def _dataclass(kind: type, value: object, where: str) -> object:
    if not isinstance(value, dict):
        raise InputError(f"{where} is damaged: {str(value)[:40]!r} stands where named values have to be")
    hints, given = get_type_hints(kind), {}
    for field in dataclasses.fields(kind):
        if field.name in value:
            given[field.name] = _typed(hints[field.name], value[field.name], where)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise InputError(f"{where} is damaged: {field.name} is missing")
    return kind(**given)
