"""A user's class on its way into other processes: written as a program that stands alone.

A class that is given from Python may live in a notebook's cell, in a script, or in a function. Its source is taken, and
what it uses besides: imports are written as imports, other classes and functions of the same kind with their source,
plain values as values. The caller names the class; the processes get the program's path from the caller, and compare
the hash of what they load.
"""

import ast
import importlib.util
import symtable
import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType, ModuleType

from gpt2lab.errors import InputError
from gpt2lab.files import atomic_write
from gpt2lab.model.attention import Mechanism, describe_mechanism, source_of
from gpt2lab.runs.mechanisms import load_attention


def carry(mechanism: Mechanism, file: Path) -> str:
    """Write the program of a class into a file; returns how the processes name it, ``file.py:ClassName``.

    Raises:
        InputError: it uses something that cannot be written down, or comes back as another class.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as out:
        out.write(program_of(mechanism).encode())
    spec = f"{file.resolve()}:{mechanism.__name__}"
    try:
        same = describe_mechanism(load_attention(spec)) == describe_mechanism(mechanism)
    except InputError as error:
        raise _cannot(mechanism, str(error)) from None
    if not same:
        raise _cannot(mechanism, "its source cannot be found as it was typed")
    return spec


def _cannot(mechanism: Mechanism, why: str) -> InputError:
    name = mechanism.__name__
    return InputError(
        f"the class {name} cannot be carried into other processes: {why}; put it into a file of its own, and give it "
        f'as "file.py:{name}"'
    )


def program_of(mechanism: Mechanism) -> str:
    """The source of a class, after that of all it uses.

    Raises:
        InputError: it uses something that cannot be written down.
    """
    parts = ["from __future__ import annotations"]  # what stands in annotations alone is not needed
    known: dict[str, object] = {}

    def need(name: str, value: object) -> None:
        if name in known:
            if known[name] is not value:
                raise _cannot(mechanism, f"it uses two different things that are called {name}")
            return
        known[name] = value
        if isinstance(value, ModuleType):
            parts.append(f"import {value.__name__} as {name}")
        elif (home := _home(value)) is not None:
            parts.append(f"from {home[0]} import {home[1]} as {name}")
        elif isinstance(value, type | FunctionType):
            write(name, value)
        elif _is_literal(value):
            parts.append(f"{name} = {value!r}")
        else:
            raise _cannot(mechanism, f"it uses {name}, a {type(value).__name__}")

    def write(name: str, value: type | FunctionType) -> None:
        source = source_of(value)
        if not source:
            raise _cannot(mechanism, f"Python does not know the source of {name}")
        tree = ast.parse(textwrap.dedent(source))
        there = _namespace(value, tree)
        for used in _free_names(tree):
            if used in there and used != value.__name__:
                need(used, there[used])
        parts.append(f"if True:\n{source}" if source[0].isspace() else source)  # the hash is of the source as it stands
        if value.__name__ != name:
            parts.append(f"{name} = {value.__name__}")

    need(mechanism.__name__, mechanism)
    return "\n\n".join(parts) + "\n"


def _home(value: object) -> tuple[str, str] | None:
    """The module and the name by which other processes can import a class or function."""
    of_python = isinstance(value, type | FunctionType)
    name = getattr(value, "__qualname__" if of_python else "__name__", None)
    if not isinstance(name, str):
        return None
    first = getattr(value, "__module__", None) or ""
    others = [] if of_python else sorted(sys.modules, key=len)  # a function written in C says less of itself
    for module in (first, *others):
        if module != "__main__" and _contents(module).get(name) is value and _can_be_found(module):
            return module, name
    return None


def _can_be_found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def _is_literal(value: object) -> bool:
    try:
        return bool(ast.literal_eval(repr(value)) == value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return False


def _namespace(value: type | FunctionType, tree: ast.Module) -> Mapping[str, object]:
    """What the names in the source of a class or function mean."""
    found = dict(_contents(value.__module__))
    for function in [value] if isinstance(value, FunctionType) else vars(value).values():
        if not isinstance(function, FunctionType):
            continue
        found |= function.__globals__
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        found |= {name: cell.cell_contents for name, cell in cells if name != "__class__"}
    if isinstance(value, type) and isinstance(tree.body[0], ast.ClassDef):
        bases = zip(tree.body[0].bases, value.__bases__, strict=False)
        found |= {node.id: base for node, base in bases if isinstance(node, ast.Name)}
    return found


def _contents(module: str) -> Mapping[str, object]:
    """What is in a module, if it is there."""
    return vars(sys.modules[module]) if module in sys.modules else {}


def _free_names(tree: ast.Module) -> list[str]:
    """The names that a source takes from around it; those in annotations, which are never looked up, left out."""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(0)
    tables, found = [symtable.symtable(ast.unparse(tree), "carried", "exec")], dict[str, None]()
    for table in tables:
        found |= {one.get_name(): None for one in table.get_symbols() if one.is_global() and one.is_referenced()}
        tables += table.get_children()
    return [*found]
