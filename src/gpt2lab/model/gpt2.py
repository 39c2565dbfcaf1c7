"""The whole model."""

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gpt2lab.config import GPT2Config, Sizes, Switches
from gpt2lab.errors import InputError
from gpt2lab.hardware import main_memory
from gpt2lab.manifests import replace_files
from gpt2lab.model import fused, saving
from gpt2lab.model.attention import Mechanism, Reading, describe_mechanism, is_mechanism, source_of
from gpt2lab.model.block import TransformerBlock, layer_norm
from gpt2lab.model.cache import Cached, Chunk, KeyValueCache
from gpt2lab.model.embeddings import GPT2Embeddings
from gpt2lab.model.loss import cross_entropy
from gpt2lab.options import method_taking


@dataclass(frozen=True, kw_only=True)
class _Arguments(Switches, Sizes):
    """What a model is made of."""

    attention: Mechanism | None = None
    seed: int | None = None


class GPT2(nn.Module):
    """GPT-2 (Radford et al. 2019), whose attention can be swapped. With no switch given it is the original.

    The sizes come first: ``GPT2(vocab_size, max_seq_len, embed_dim, num_heads, ff_hidden_dim, num_layers)``; then, by
    name, the switches of :class:`gpt2lab.GPT2Config`, and:

    Args:
        attention: a user's own mechanism, a subclass of ScaledDotProductAttention, for every layer.
        seed: of the initial weights; None: torch's own (``torch.manual_seed``).

    Attributes:
        native: whether the native step (``model/fused.py``) does the training, as a trainer decides.

    Raises:
        InputError: sizes or switches that do not go together.

    Examples:
        >>> model = GPT2(65, 64, 128, 4, 512, 4, position="rope", num_kv_heads=1, window=16)
        >>> model(torch.zeros(1, 64, dtype=torch.int64)).shape
        torch.Size([1, 64, 65])
    """

    @method_taking(_Arguments)
    def __init__(self, *sizes: Any, **named: Any) -> None:
        super().__init__()
        attention, seed = named.pop("attention", None), named.pop("seed", None)
        if attention is not None and not is_mechanism(attention):
            raise InputError(f"attention={attention!r} has to be a class that inherits from ScaledDotProductAttention")
        named["attention"] = describe_mechanism(attention) if attention is not None else None
        try:
            self.config = GPT2Config(*sizes, **named)
        except TypeError as error:
            known = ", ".join(switch.name for switch in dataclasses.fields(Switches))
            raise InputError(f"{error}; the switches are {known}") from None
        self.mechanism_class = attention
        config = self.config
        _check_room(config)
        self.embeddings = GPT2Embeddings(config)
        self.blocks: list[TransformerBlock] = nn.ModuleList(  # type: ignore[assignment]
            TransformerBlock(config, layer, attention) for layer in range(config.num_layers)
        )
        self.final_norm = layer_norm(config)
        if not config.tie_embeddings and config.vocab_size > 0:
            self.lm_head = nn.Linear(config.embed_dim, config.vocab_size, bias=False)
        self.seed = torch.initial_seed() if seed is None else seed
        self.native = False
        self.init_weights(self.seed)

    @classmethod
    def from_config(cls, config: GPT2Config, *, attention: Mechanism | None = None, seed: int | None = None) -> Self:
        """The model of a configuration; ``attention`` is passed again where the configuration names one.

        Raises:
            InputError: the configuration names a user's mechanism, and none or another one is given.
        """
        if config.attention is not None and attention is None:
            raise InputError(
                f"this model uses the attention {config.attention.split('@')[0]!r}, which is never run from a file by "
                "itself; pass it again: attention=… or --attention file.py:Name"
            )
        if config.attention is not None and attention is not None and config.attention != describe_mechanism(attention):
            raise InputError(
                f"this model was made with the attention {config.attention}, and {describe_mechanism(attention)} was "
                "given; its source differs, so the weights may mean something else (what it was made with lies beside "
                "them, in attention.py)"
            )
        values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config) if f.name != "attention"}
        return cls(**values, attention=attention, seed=seed)

    @torch.no_grad()
    def init_weights(self, seed: int) -> None:
        """Give every parameter its initial value: see :meth:`initial_weights`."""
        if self.final_norm.weight.is_meta:
            return  # there is no room for them yet
        for parameter, value in zip(self.parameters(), self.initial_weights(seed), strict=True):
            if value is not None:
                parameter.copy_(value)

    def initial_weights(self, seed: int) -> Iterator[Tensor | None]:
        """GPT-2's initialisation: N(0, 0.02), residual projections N(0, 0.02 / sqrt(2 · layers)), biases 0.

        (Radford et al. 2019, section 2.3.) Each tensor is a function of (seed, its name) alone, so that it does not
        depend on what else the model holds or on which process makes it. A user's mechanism keeps what its own
        constructor made.

        Returns:
            for every parameter in turn a float32 tensor of its whole shape, or None to leave it as it is.
        """
        residual = 0.02 / math.sqrt(2 * self.config.num_layers)
        for name, parameter in self.named_parameters():
            if self.mechanism_class is not None and ".mechanism." in name:
                yield None
            elif parameter.dim() < 2:
                yield torch.full(parameter.shape, 0.0 if name.endswith(("bias", "sinks")) else 1.0)
            else:
                digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
                generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
                std = residual if name.endswith(("attention.output.weight", "feed_forward.contract.weight")) else 0.02
                yield torch.empty(parameter.shape).normal_(0.0, std, generator=generator)

    def settle_vocabulary(self, vocab_size: int) -> None:
        """Give a model that was made with ``vocab_size=0`` its vocabulary.

        Raises:
            InputError: it already has a smaller one than is needed.
        """
        if self.config.vocab_size >= vocab_size:
            return
        if self.config.vocab_size > 0:
            raise InputError(
                f"the data has {vocab_size} distinct tokens, but the model was made with "
                f"vocab_size={self.config.vocab_size}; make it with vocab_size={vocab_size}"
            )
        fresh = GPT2.from_config(
            dataclasses.replace(self.config, vocab_size=vocab_size),
            attention=self.mechanism_class,
            seed=self.seed,
        ).to(self.device, self.dtype)
        self.config = self.embeddings.config = fresh.config
        self.embeddings.token = fresh.embeddings.token
        if not self.config.tie_embeddings:
            self.lm_head = fresh.lm_head

    def forward(
        self,
        ids: Tensor,
        targets: Tensor | None = None,
        *,
        reduction: Literal["mean", "sum"] = "mean",
        positions: Tensor | None = None,
        cache: KeyValueCache | None = None,
        last_only: bool = False,
    ) -> Tensor:
        """Logits, or with targets the loss.

        Args:
            ids: token ids, int64 (B, T).
            targets: the token that follows each one, int64 (B, T), already shifted by the data set; -100: not counted.
            reduction: the loss is the mean of what is counted (NaN of nothing), or the sum.
            positions: int64 (B or 1, T), -1 for padding on the left; None: 0 .. T-1, or on from what the cache holds.
            cache: memory of earlier tokens, which the new ones are added to; with it nothing can be differentiated.
            last_only: make the logits of the last token alone, (B, 1, V).

        Returns:
            logits (B, T, V), or a scalar, float32 or wider: cross-entropy in nats (of a large vocabulary: made without
            ever holding all logits, and differentiable once).

        Raises:
            InputError: more tokens than learned positions, or a vocabulary that is not settled yet.
        """
        if cache is not None and torch.is_grad_enabled():
            with torch.no_grad():
                return self.forward(ids, targets, positions=positions, cache=cache, last_only=last_only)
        hidden = self.hidden(ids, positions=positions, cache=cache)
        if targets is None:
            return self.unembed(hidden[:, -1:] if last_only else hidden)
        return cross_entropy(hidden.flatten(0, 1), self.output_weight, targets.flatten(), reduction)

    def hidden(self, ids: Tensor, *, positions: Tensor | None = None, cache: KeyValueCache | None = None) -> Tensor:
        """The hidden states that logits are made of, (B, T, C); arguments as for the model itself."""
        if self.config.vocab_size == 0:
            raise InputError("the model has no vocabulary yet: train it first, or make it with vocab_size=…")
        length = ids.shape[1]
        chunks: dict[int, Chunk] = {}
        if cache is not None:
            positions, chunks = cache.begin(ids, positions)
        elif positions is None and self.config.position == "learned" and length > self.config.max_seq_len:
            raise InputError(
                f"{length} tokens were given, but this model has learned only {self.config.max_seq_len} positions "
                f"(its context); give it at most that many"
            )
        at = torch.arange(length, device=ids.device)[None] if positions is None else positions
        hidden, rotary = self.embeddings(ids, at)  # (B, T, C)
        if self.native and self.training and positions is None and torch.is_grad_enabled():
            return fused.hidden(self.config, self.blocks, self.final_norm, hidden, rotary)
        reading = Reading(positions, rotary, chunks)
        for layer, block in enumerate(self.blocks):
            hidden = block(hidden, reading, cache.layers[layer] if cache is not None else None)
        return self.final_norm(hidden)  # type: ignore[no-any-return]

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states: (…, C) to (…, V)."""
        return F.linear(hidden, self.output_weight)

    @property
    def output_weight(self) -> Tensor:
        """The matrix of the output layer, (V, C), which is the token embedding where they are tied."""
        return self.embeddings.token.weight if self.config.tie_embeddings else self.lm_head.weight

    @property
    def device(self) -> torch.device:
        """Where the model lies."""
        return self.final_norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.final_norm.weight.dtype

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode for a while; whatever happens, every part has its own mode again afterwards."""
        modes = [(module, module.training) for module in self.modules()]
        try:
            self.eval()
            yield
        finally:
            for module, training in modes:
                module.training = training

    @property
    def cached(self) -> list[Cached]:
        """What each layer remembers of a text, as its mechanism declares."""
        return [block.attention.mechanism.cached() for block in self.blocks]

    @property
    def endless(self) -> bool:
        """Whether the model can write for ever in constant memory: no learned positions, a window in every layer.

        A window as long as the context is none.
        """
        T = self.config.max_seq_len
        return self.config.position != "learned" and all((layer.slots or T) < T for layer in self.cached)

    def num_parameters(self) -> int:
        """Number of trained values; tied weights count once."""
        return sum(parameter.numel() for parameter in self.parameters())

    def flops_per_token(self, context: int | None = None) -> float:
        """Floating-point operations of a forward pass per token, averaged over a context; training costs 3 times that.

        Counts every matrix product (a multiply-add is two) and no element-wise work. Attention counts what it reads:
        the token at position i sees min(i + 1, W) keys, and each costs 2·C for its score and 2·C for its value.
        """
        T = context or self.config.max_seq_len
        blocks = [m for block in self.blocks for m in block.modules() if isinstance(m, nn.Linear)]
        products = sum(m.weight.numel() for m in blocks) + self.config.vocab_size * self.config.embed_dim
        keys = 0
        for block in self.blocks:
            window = min(block.attention.window or T, T)
            keys += window * (window + 1) // 2 + (T - window) * window  # the first W tokens see 1, 2, … W
        return 2 * products + 4 * self.config.embed_dim * keys / T

    def cache_bytes_per_token(self, dtype: torch.dtype | None = None) -> int:
        """Bytes of keys and values that one token adds to the cache while no window is full.

        Args:
            dtype: of the cache; None: the weights' own.
        """
        return self.cache_bytes(1, dtype)

    def cache_bytes(self, num_tokens: int, dtype: torch.dtype | None = None) -> int:
        """Bytes of keys and values that a text of that many tokens needs: a windowed layer keeps only its window."""
        size = (dtype or self.dtype).itemsize
        return sum(
            size * (math.prod(layer.keys) + math.prod(layer.values)) * min(num_tokens, layer.slots or num_tokens)
            for layer in self.cached
        )

    def weights(self) -> dict[str, Tensor]:
        """All parameters and saved buffers, detached, by name; what several layers share is there once."""
        shared = self._shared()
        return {name: tensor for name, tensor in self.state_dict().items() if name not in shared}

    def _shared(self) -> dict[str, str]:
        """Names whose tensor has another name, too: the first of its names."""
        first: dict[int, str] = {}
        names = {n: first.setdefault(id(tensor), n) for n, tensor in self.state_dict(keep_vars=True).items()}
        return {name: earlier for name, earlier in names.items() if name != earlier}

    def save(self, folder: str | Path, tokenizer: saving.SavesItself | None = None) -> None:
        """Write ``model.safetensors`` and ``config.json`` (and, for a user's mechanism, its source) into a folder.

        With the tokenizer beside it, the folder is read by ``gpt2lab.load`` and by every command that reads a run.
        """
        files: dict[str, bytes | Callable[[Path], object]] = {**self.description()}
        files[saving.WEIGHTS] = partial(saving.save_tensors, self.weights())
        if tokenizer is not None:
            files[saving.TOKENIZER] = tokenizer.save
        replace_files(Path(folder), files)

    def description(self) -> dict[str, bytes]:
        """The files of the model but the weights, by name."""
        source = None if self.mechanism_class is None else source_of(self.mechanism_class)
        return saving.description(self.config, source)

    @classmethod
    def load(cls, folder: str | Path, *, attention: Mechanism | None = None) -> Self:
        """Read a model that :meth:`save` wrote. Nothing in the folder is executed.

        The model has its weights in memory of its own, in the precision in which they were saved, and computes the
        same bits as the one that was saved.

        Raises:
            InputError: a file is missing, damaged, or does not fit the other.
        """
        folder = Path(folder)
        config, weights = saving.read_config(folder), saving.read_weights(folder)
        # Before there is room for them. (A mechanism of the user's may have fewer.)
        if attention is None and sum(tensor.numel() for tensor in weights.values()) < config.matrix_parameters:
            raise InputError(f"the weights in {folder} do not fit its config.json, which asks for more of them")
        model = cls.from_config(config, attention=attention)
        try:
            shared = model._shared()
            weights |= {name: weights[first] for name, first in shared.items() if first in weights}
            model.load_state_dict(weights, assign=True)
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise InputError(f"the weights in {folder} do not fit its config.json: {first}") from None
        for name, first in shared.items():  # one tensor again
            module, _, own = name.rpartition(".")
            setattr(model.get_submodule(module), own, attrgetter(first)(model))
        return model


def _check_room(config: GPT2Config) -> None:
    """Refuse a model that the machine's main memory cannot hold, which is where every model is made."""
    size, memory = 4 * config.matrix_parameters, main_memory()
    if torch.get_default_device().type != "meta" and memory is not None and size > memory:
        raise InputError(
            f"a model of {config.matrix_parameters:,} parameters takes {size / 1e9:,.0f} GB in float32, and this "
            f"machine has {memory / 1e9:,.0f} GB of memory; make it smaller"
        )
