"""What a call of a library is made of: the types of C, and where a tensor lies."""

import ctypes

from torch import Tensor

Pointer, Int, Double = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


def address(tensor: Tensor | None) -> int | None:
    """Where the first number of a tensor lies, or None (null) without one."""
    return None if tensor is None else tensor.data_ptr()
