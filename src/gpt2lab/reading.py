"""Files that may hold anything, read into values that are whole and right, or refused in a sentence that says where.

A file is read only if it is a regular one, because a pipe may never say anything and a device may never end, and only
up to a size, because a file of a gigabyte of brackets would fill the memory as lists.
"""

import dataclasses
import json
import stat
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints, is_typeddict

from gpt2lab.errors import InputError

T = TypeVar("T")

MIB = 1 << 20
MOST_JSON = 64 * MIB
MOST_SETTINGS = MIB
MOST_NODES = 100_000  # of a file of settings, after what it repeats by name is put in
MOST_WHOLE = 2**63  # below which whole numbers have to be
LARGEST = 1e150  # of other numbers in files, whose squares are finite then


def regular_file(path: Path, most: int | None = None) -> int:
    """The size of a file that can be read to its end.

    Args:
        path: of the file; a link counts as what it leads to.
        most: bytes that it may have.

    Raises:
        InputError: there is no such file, it is a folder, a pipe or a device, or too large.
    """
    try:
        about = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"there is no file {path}") from None
    except (OSError, ValueError) as error:  # ValueError: no path at all
        raise InputError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if stat.S_ISDIR(about.st_mode):
        raise InputError(f"{path} is a folder, not a file")
    if not stat.S_ISREG(about.st_mode):
        raise InputError(f"{path} is no regular file, but a pipe or a device")
    if most is not None and about.st_size > most:
        raise InputError(f"{path} is too large for what it should be: {about.st_size:,} bytes, and {most:,} at most")
    return about.st_size


def read_text(path: Path, most: int = MOST_JSON) -> str:
    """The text of a UTF-8 file.

    Raises:
        InputError: as :func:`regular_file`; or it cannot be read, or is no UTF-8.
    """
    size = regular_file(path, most)
    try:
        with path.open("rb") as file:
            return file.read(size).decode()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is damaged: it is no UTF-8 text ({error.reason} at byte {error.start})") from None


def read_lines(path: Path, most: int) -> Iterator[str]:
    """The lines of a UTF-8 file, one after the other; bytes that are no text are replaced.

    Raises:
        InputError: as :func:`regular_file`.
    """
    regular_file(path, most)
    with path.open(encoding="utf-8", errors="replace") as file:
        yield from file


def loads(text: str) -> object:
    """A JSON text; NaN and Infinity, which JSON has not, are read as null.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return json.loads(text, parse_constant=lambda _: None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(kind: type[T], path: Path, most: int = MOST_JSON) -> T:
    """What a JSON file of at most so many bytes holds, as that type.

    Raises:
        InputError: the file is missing, no JSON, or holds something else.
    """
    text = read_text(path, most)
    try:
        value = loads(text)
    except ValueError as error:
        raise InputError(f"{path} is damaged: {_in_a_line(error)}") from None
    return typed(kind, value, str(path))


def read_settings(path: Path) -> dict[str, Any]:
    """Named values of a YAML or TOML file.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    import yaml

    text = read_text(path, MOST_SETTINGS)
    try:
        values = tomllib.loads(text) if path.suffix == ".toml" else _yaml(text)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:  # of values such as 2001-99-99
        raise InputError(f"{path} cannot be read: {_in_a_line(error)}") from None
    except RecursionError:
        raise InputError(f"{path} cannot be read: it is nested too deeply") from None
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise InputError(f"{path} has to hold settings, one `name: value` a line")
    return values


def _yaml(text: str) -> object:
    import yaml

    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            _count(node, {})
        return None if node is None else loader.construct_document(node)
    finally:
        loader.dispose()


def _count(node: Any, counted: dict[int, int]) -> int:
    """How many values there are below a YAML node; one that is repeated by name counts every time."""
    if id(node) not in counted:
        counted[id(node)] = MOST_NODES + 1  # for a node that contains itself
        inner = node.value if isinstance(node.value, list) else []
        parts = (part for each in inner for part in (each if isinstance(each, tuple) else (each,)))
        counted[id(node)] = 1 + sum(_count(part, counted) for part in parts)
    if counted[id(node)] > MOST_NODES:
        raise ValueError(f"it holds more than {MOST_NODES:,} values, or one that contains itself")
    return counted[id(node)]


def typed(kind: type[T], value: object, where: str) -> T:
    """A plain value as that type: a dataclass, a list, tuple or dict of such, a Literal, a union, or a plain type.

    A number stays what it is: an int that stands for a float is not turned into one. Names that a dataclass or a
    TypedDict does not have are passed over.

    Raises:
        InputError: it is none.
    """
    return cast(T, _typed(kind, value, where))


def _typed(kind: Any, value: Any, where: str) -> Any:  # noqa: PLR0911
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is object:
        return value
    if is_typeddict(kind) or (dataclasses.is_dataclass(kind) and isinstance(kind, type)):
        return _named(kind, value, where)
    if origin in (Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        (one,) = [one for one in arguments if one is not type(None)]
        return _typed(one, value, where)
    if origin is Literal and isinstance(value, str | int) and value in arguments:
        return value
    if origin is list and isinstance(value, list):
        return [_typed(arguments[0], one, where) for one in value]
    if origin is tuple and isinstance(value, list):
        kinds = [arguments[0]] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) == len(value):
            return tuple(_typed(one, item, where) for one, item in zip(kinds, value, strict=True))
    if origin is dict and isinstance(value, dict):
        return {_key(arguments[0], key, where): _typed(arguments[1], one, where) for key, one in value.items()}
    if kind in (str, bool) and type(value) is kind:
        return value
    if kind in (int, float) and _is_number(kind, value):
        return value
    words = {str: "text", bool: "true or false", int: "a whole number", float: "a number"}
    expected = words.get(kind, "a list" if origin in (list, tuple) else "something else")
    raise InputError(f"{where} is damaged: {shortly(value)} stands where {expected} has to be")


def _is_number(kind: type, value: object) -> bool:
    if type(value) is int:
        return abs(value) < MOST_WHOLE
    return kind is float and type(value) is float and abs(value) < LARGEST


def _key(kind: type, key: str, where: str) -> str | int:
    if kind is not int:
        return key
    try:
        return int(key)
    except ValueError:
        raise InputError(f"{where} is damaged: {shortly(key)} stands where a whole number has to be") from None


def _named(kind: Any, value: object, where: str) -> object:
    """A dataclass or a TypedDict."""
    if not isinstance(value, dict):
        raise InputError(f"{where} is damaged: {shortly(value)} stands where named values have to be")
    if is_typeddict(kind):
        needed = kind.__required_keys__
    else:
        missing = dataclasses.MISSING
        needed = {f.name for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing}
    given = {}
    hints = get_type_hints(kind)
    for name in hints if is_typeddict(kind) else [f.name for f in dataclasses.fields(kind)]:
        hint = hints[name]
        if name in value:
            given[name] = _typed(hint, value[name], where)
        elif name in needed:
            raise InputError(f"{where} is damaged: {name} is missing")
    try:
        return kind(**given)
    except InputError as error:
        raise InputError(f"{where} is damaged: {error}") from None


def shortly(value: object) -> str:
    """A value as messages show it: its first characters, if it is long."""
    try:
        said = repr(value)
    except (ValueError, RecursionError):  # of a whole number with thousands of digits
        return "a value too long to show"
    return said if len(said) <= 60 else f"{said[:57]}…"


def _in_a_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
