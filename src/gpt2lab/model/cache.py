"""What a model remembers of the tokens that it has read: the latest keys and values of every layer.

A windowed layer needs only its window, so its memory is a ring: column c of the text lives in slot c mod W. With a
window of 4, after six tokens a b c d e f, and then after g:

    slot        0  1  2  3              slot        0  1  2  3
    token       e  f  c  d              token       e  f  g  d
    position    4  5  2  3              position    4  5  6  3

The positions are stored beside the keys, so attention needs no order among the slots. A chunk of several tokens
would push out keys that its own first queries still see, so it attends to the old ring and itself, and is
written only then.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from gpt2lab.errors import InputError

if TYPE_CHECKING:
    from gpt2lab.model.gpt2 import GPT2


class KeyValueCache:
    """The memory of one batch of texts, to be passed to ``model(ids, cache=cache)`` again and again.

    Texts of different lengths share a batch by padding on the left: give the first chunk ``positions`` (B, T) that are
    -1 on the padding and count from 0 behind it; later chunks go on by themselves.

    Example:
        >>> cache = KeyValueCache(model)
        >>> model(prompt, cache=cache)        # (B, T) ids: the whole prompt at once
        >>> model(next_token, cache=cache)    # (B, 1) ids: then token by token
    """

    def __init__(self, model: "GPT2") -> None:
        self.max_seq_len = model.config.max_seq_len
        self.endless = model.endless
        windows = [block.attention.window or self.max_seq_len for block in model.blocks]
        self.layers = [LayerCache(w if self.endless else min(w, self.max_seq_len)) for w in windows]
        self.length = 0
        self._next_position = torch.empty(0)

    def advance(self, ids: Tensor, positions: Tensor | None) -> Tensor | None:
        """Count a chunk in and return its positions, int64 (B or 1, T); None stands for 0 .. T-1.

        Raises:
            InputError: the chunk goes beyond the context of a model that is not endless.
        """
        first, length = self.length == 0, self.length + ids.shape[1]
        if length > self.max_seq_len and not self.endless:
            raise InputError(
                f"the cache holds a context of {self.max_seq_len} tokens and was given {length}; begin a new "
                "one with the latest tokens, as generate() does"
            )
        self.length = length
        if positions is None and first:
            self._next_position = torch.full((1, 1), ids.shape[1], device=ids.device)
            return None
        if positions is None:
            positions = self._next_position + torch.arange(ids.shape[1], device=ids.device)
        self._next_position = positions[:, -1:] + 1
        return positions


class LayerCache:
    """Keys (B, K, S, D), values (B, K, S, D) and positions (B or 1, S) of one layer, in a ring of S slots."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.columns = 0
        self.k = self.v = self.positions = torch.empty(0)  # made when the first chunk tells their size and device

    def extend(self, k: Tensor, v: Tensor, positions: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """Remember a chunk, and return all that its queries may see: keys, values and positions.

        Args:
            k: rotated keys of the chunk, (B, K, T, D).
            v: values, (B, K, T, D).
            positions: int64 (B or 1, T); None, for a first chunk: 0 .. T-1 (and None comes back).
        """
        if positions is None:
            self._write(k, v, torch.arange(k.shape[2], device=k.device)[None])
            return k, v, None
        T = k.shape[2]
        if T == 1 or self.columns + T <= self.num_slots:  # nothing is pushed out that a query of the chunk still sees
            self._write(k, v, positions)
            return self._filled()
        if self.columns == 0:
            self._write(k, v, positions)
            return k, v, positions
        old_k, old_v, old_positions = self._filled()
        seen_k, seen_v = torch.cat((old_k, k), dim=2), torch.cat((old_v, v), dim=2)
        seen_positions = torch.cat((old_positions, positions), dim=1)
        self._write(k, v, positions)
        return seen_k, seen_v, seen_positions

    def _filled(self) -> tuple[Tensor, Tensor, Tensor]:
        used = min(self.columns, self.num_slots)
        return self.k[:, :, :used], self.v[:, :, :used], self.positions[:, :used]

    def _write(self, k: Tensor, v: Tensor, positions: Tensor) -> None:
        if self.columns == 0:
            B, K, _, D = k.shape
            self.k, self.v = k.new_zeros(B, K, self.num_slots, D), v.new_zeros(B, K, self.num_slots, D)
            self.positions = positions.new_full((positions.shape[0], self.num_slots), -1)
        self.columns += k.shape[2]
        kept = min(k.shape[2], self.num_slots)
        slots = torch.arange(self.columns - kept, self.columns, device=k.device) % self.num_slots
        self.k[:, :, slots] = k[:, :, -kept:]
        self.v[:, :, slots] = v[:, :, -kept:]
        self.positions[:, slots] = positions[:, -kept:]
