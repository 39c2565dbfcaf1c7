"""What a model remembers of the tokens that it has read: the latest keys and values of every layer.

A windowed layer needs only its window, so its memory is a ring of S slots, and the token at position p lies in slot
p mod S. Every row of a batch stands at a position of its own. With S = 4, when one row has read a b c d e f and another
one x y, and after each has read one token more:

    slot        0  1  2  3              slot        0  1  2  3
    row 0       e  f  c  d              row 0       e  f  g  d
    position    4  5  2  3              position    4  5  6  3
    row 1       x  y  .  .              row 1       x  y  z  .
    position    0  1 -1 -1              position    0  1  2 -1

The positions are stored beside the keys, so attention needs no order among the slots; -1 marks an empty one. A chunk of
several tokens would push out keys that its own first queries still see, so it attends to the old ring and itself, and
is written only then.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

from gpt2lab.config import GPT2Config
from gpt2lab.errors import InputError
from gpt2lab.model.kernels import visible

# Some tokens of a chunk: their rows, their columns, and the slots that they go to.
Write = tuple[slice, slice, slice] | tuple[Tensor, Tensor, Tensor]


class Cached(NamedTuple):
    """What one layer remembers.

    Attributes:
        slots: of how many latest tokens; None: of all in the context.
        keys: heads and width of a token's key.
        values: heads and width of a token's value.
    """

    slots: int | None
    keys: tuple[int, int]
    values: tuple[int, int]


class CachedModel(Protocol):
    """What a cache asks a model about."""

    config: GPT2Config

    @property
    def device(self) -> torch.device: ...  # noqa: D102

    @property
    def dtype(self) -> torch.dtype: ...  # noqa: D102

    @property
    def endless(self) -> bool: ...  # noqa: D102

    @property
    def cached(self) -> Sequence[Cached]: ...  # noqa: D102


class KeyValueCache:
    """The memory of a batch of texts, to be passed to ``model(ids, cache=cache)`` again and again.

    Its size is fixed. Rows may stand at different positions: texts of different lengths share a batch by padding on the
    left (give their chunks ``positions`` (B, T) that are -1 on the padding and count from 0 behind it; later chunks go
    on by themselves), or are read one after the other into a part of the rows, ``cache[2:3]``, which is the same
    memory. Reading with a cache leaves no gradients.

    Args:
        model: whose layers say what they remember.
        rows: texts at once, B; None: as many as the first chunk has.

    Attributes:
        lengths: tokens that each row has read, which is the position of its next one: int64 (B,), on the CPU.

    Examples:
        >>> cache = KeyValueCache(model)
        >>> model(prompt, cache=cache)        # (B, T) ids: the whole prompt at once
        >>> model(next_token, cache=cache)    # (B, 1) ids: then token by token
    """

    def __init__(self, model: CachedModel, rows: int | None = None) -> None:
        self.max_seq_len = model.config.max_seq_len
        self.endless = model.endless
        self._shapes, self._place = model.cached, (model.device, model.dtype)
        self.lengths = torch.zeros(0, dtype=torch.int64)
        self.positions: dict[int, Tensor] = {}  # of the keys in all rings of S slots: S to (B, S)
        self.layers: list[LayerCache] = []
        if rows is not None:
            self._allocate(rows)

    def _allocate(self, rows: int) -> None:
        device, dtype = self._place
        self.lengths = torch.zeros(rows, dtype=torch.int64)
        for slots, *shapes in self._shapes:
            ring = min(slots or self.max_seq_len, self.max_seq_len)
            k, v = (torch.zeros(rows, heads, ring, width, device=device, dtype=dtype) for heads, width in shapes)
            self.layers.append(LayerCache(ring, k, v))
            self.positions[ring] = torch.full((rows, ring), -1, device=device)

    def __getitem__(self, rows: slice) -> Self:
        """Some of the rows, in the same memory."""
        part = copy.copy(self)
        part.lengths = self.lengths[rows]
        part.positions = {ring: positions[rows] for ring, positions in self.positions.items()}
        part.layers = [LayerCache(layer.ring, layer.k[rows], layer.v[rows], layer.read_in) for layer in self.layers]
        return part

    def clear(self, row: int) -> None:
        """Empty a row for another text."""
        if self.lengths[row] == 0:
            return
        self.lengths[row] = 0
        for positions in self.positions.values():
            positions[row] = -1
        for layer in self.layers:  # what is hidden must be a number, too: 0 times NaN is NaN
            layer.k[row] = layer.v[row] = 0

    def copy(self, row: int, to: int) -> None:
        """Bring a text to another row as well, whose own text is forgotten."""
        tensors = [tensor for layer in self.layers for tensor in (layer.k, layer.v)]
        for tensor in (self.lengths, *self.positions.values(), *tensors):
            tensor[to] = tensor[row]

    def begin(self, ids: Tensor, positions: Tensor | None) -> tuple[Tensor | None, dict[int, "Chunk"]]:
        """Count a chunk in.

        Args:
            ids: the chunk, (B, T).
            positions: its positions, int64 (B or 1, T); None: on from what each row holds.

        Returns:
            its positions, None for 0 .. T-1, and by number of slots how it meets the rings.

        Raises:
            InputError: the cache has another number of rows, or the chunk goes beyond the context of a model that is
                not endless.
        """
        B, T = ids.shape
        if not self.layers:
            self._allocate(B)
        if len(self.lengths) != B:
            raise InputError(
                f"the cache has {len(self.lengths)} rows and was given {B}; make one with rows={B}, or pass a part of "
                f"it, cache[:{B}]"
            )
        given, before = positions is not None, self.lengths.clone()
        if not before.any():
            for layer in self.layers:
                layer.read_in.clear()
        after = before + T if positions is None else torch.maximum(before, positions[:, -1].cpu() + 1)
        if int(after.max()) > self.max_seq_len and not self.endless:
            raise InputError(
                f"the cache holds a context of {self.max_seq_len} tokens and was given {int(after.max())}; begin a new "
                "one with the latest tokens, as generate() does"
            )
        self.lengths.copy_(after)
        fresh, together = not before.any(), bool((before == before[0]).all())
        if positions is None and not fresh:
            start = before[:1] if together else before
            positions = start[:, None].to(ids.device) + torch.arange(T, device=ids.device)  # (B or 1, T)
        at = torch.arange(T, device=ids.device)[None] if positions is None else positions
        at = at.expand(B, T)
        chunks = {}
        for ring, held in self.positions.items():
            writes: Sequence[Write]
            if together and not given:
                writes = _stretches(int(before[0]), T, ring)
            else:
                writes = [_places(at, after.to(at.device), ring, padded=given)]
            stays = T == 1 or int(after.max()) <= ring  # nothing is pushed out that a query of the chunk still sees
            reads: Literal["itself", "ring", "both"] = "itself" if fresh else "ring" if stays else "both"
            used = min(int((after if stays else before).max()), ring)
            k_pos = torch.cat((held[:, :used], at), dim=1) if reads == "both" else positions
            for rows, columns, slots in writes:
                held[rows, slots] = at[rows, columns]
            if reads == "ring":
                k_pos = held[:, :used]
            chunks[ring] = Chunk(reads, used, writes, positions, k_pos)
        return positions, chunks


def _stretches(start: int, length: int, ring: int) -> list[tuple[slice, slice, slice]]:
    """Where a chunk goes if all rows stand at the same position: (rows, columns of the chunk, slots), one or two."""
    end = start + length
    first = max(start, end - ring)  # what would be written over at once is left out
    turn = min(end, first - first % ring + ring)  # where slot 0 comes
    parts = [(first, turn), (turn, end)]
    return [(slice(None), slice(a - start, b - start), slice(a % ring, a % ring + b - a)) for a, b in parts if a < b]


def _places(at: Tensor, after: Tensor, ring: int, padded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The same for rows that stand at different positions: of each token that stays its row, column and slot.

    Args:
        at: positions of the chunk (B, T).
        after: positions of the rows' next tokens (B,).
        ring: number of slots.
        padded: whether some tokens may be padding.
    """
    B, T = at.shape
    if padded:
        rows, columns = ((at >= 0) & (at >= after[:, None] - ring)).nonzero(as_tuple=True)
        return rows, columns, at[rows, columns] % ring
    rows = torch.arange(B, device=at.device)[:, None]
    columns = torch.arange(max(0, T - ring), T, device=at.device)[None]
    return rows, columns, at[rows, columns] % ring


@dataclass(frozen=True)
class Chunk:
    """How a chunk of tokens meets all rings of one size.

    Attributes:
        reads: the queries see the chunk itself, the ring after it was written, or the ring before and the chunk.
        used: how many slots of the ring are read.
        writes: rows, columns of the chunk, and the slots that they go to.
        q_pos: positions of the queries, int64 (B or 1, T); None: 0 .. T-1.
        k_pos: positions of the keys that they may see, int64 (B or 1, Tk); None: 0 .. T-1.
    """

    reads: Literal["itself", "ring", "both"]
    used: int
    writes: Sequence[Write]
    q_pos: Tensor | None
    k_pos: Tensor | None
    _seen: dict[int | None, Tensor] = field(default_factory=dict)

    def seen(self, window: int | None) -> Tensor | None:
        """Which keys each query sees, bool (B or 1, T, Tk); None where the positions are 0 .. T-1.

        It is made for the first layer that asks, and kept for the others.
        """
        if self.q_pos is None or self.k_pos is None:
            return None
        if window not in self._seen:
            self._seen[window] = visible(self.q_pos, self.k_pos, window)
        return self._seen[window]


class LayerCache:
    """Keys (B, heads, S, width) and values of one layer, in a ring of S slots.

    Attributes:
        read_in: the precision in which texts were read, which parts of the cache share.
    """

    def __init__(self, ring: int, k: Tensor, v: Tensor, read_in: set[torch.dtype] | None = None) -> None:
        self.ring, self.k, self.v = ring, k, v
        self.read_in: set[torch.dtype] = set() if read_in is None else read_in

    def extend(self, k: Tensor, v: Tensor, chunk: Chunk) -> tuple[Tensor, Tensor]:
        """Remember the keys (B, heads, T, width) and values of a chunk, and return all that its queries may see.

        Raises:
            InputError: the chunk is read in another precision than those before it.
        """
        seen = k, v
        if self.read_in and k.dtype not in self.read_in:
            (before,) = self.read_in
            was, now = (str(dtype).removeprefix("torch.") for dtype in (before, k.dtype))
            raise InputError(
                f"the cache was filled in {was} and is read in {now}, so its keys are not those of this precision; "
                "make a new one, or read the whole of a text under autocast, or none of it"
            )
        self.read_in.add(k.dtype)
        if chunk.reads == "both":
            seen = torch.cat((self.k[:, :, : chunk.used], k), dim=2), torch.cat((self.v[:, :, : chunk.used], v), dim=2)
        for rows, columns, slots in chunk.writes:
            self.k[rows, :, slots] = k[rows, :, columns].to(self.k.dtype)
            self.v[rows, :, slots] = v[rows, :, columns].to(self.v.dtype)
        if chunk.reads == "ring":
            seen = self.k[:, :, : chunk.used], self.v[:, :, : chunk.used]
        return seen
