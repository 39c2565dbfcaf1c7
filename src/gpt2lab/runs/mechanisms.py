"""A user's own mechanism: loaded when the user names it, and never because a file in a folder does."""

import importlib.util
import sys
from pathlib import Path
from typing import overload

from gpt2lab.errors import InputError
from gpt2lab.model import ScaledDotProductAttention
from gpt2lab.model.attention import Mechanism, is_mechanism


@overload
def load_attention(spec: str | type) -> Mechanism: ...
@overload
def load_attention(spec: None) -> None: ...
@overload
def load_attention(spec: str | type | None) -> Mechanism | None: ...
def load_attention(spec: str | type | None) -> Mechanism | None:
    """The class itself, or the one behind ``file.py:ClassName``: this runs the file, as the user asked.

    Raises:
        InputError: no such file or class, or the file fails when it is run.
    """
    if spec is None:
        return None
    if isinstance(spec, type):
        if not is_mechanism(spec):
            raise InputError(f"attention={spec!r} has to be a class that inherits from ScaledDotProductAttention")
        return spec
    file, _, name = spec.rpartition(":")
    path = Path(file).expanduser()
    if not file:
        raise InputError(f"--attention {spec}: the class is missing; write it as file.py:ClassName")
    if not path.is_file():
        raise InputError(f"--attention {spec}: there is no file {file!r}; write it as file.py:ClassName")
    module_spec = importlib.util.spec_from_file_location(f"attention file {path.resolve()}", path)
    if module_spec is None or module_spec.loader is None:
        raise InputError(f"--attention {spec}: {file} is not a Python file")
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module_spec.name] = module  # where Python looks for a class's source
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"--attention {spec}: {file} does not import: {type(error).__name__}: {error}") from None
    found = getattr(module, name, None)
    if not is_mechanism(found):
        known = [n for n, v in vars(module).items() if is_mechanism(v) and v.__module__ == module.__name__]
        raise InputError(
            f"--attention {spec}: {file} has no class {name!r} that inherits from {ScaledDotProductAttention.__name__}"
            + (f"; it has {', '.join(known)}" if known else "")
        )
    return found
