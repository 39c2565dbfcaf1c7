"""What a way to train needs: the memory of every device, what travels between devices, arithmetic.

How parameters, gradients and optimiser state are divided, and what travels for it, is the arithmetic of ZeRO
(Rajbhandari et al. 2020, arXiv:1910.02054, sections 5 and 7: DDP is its baseline, FSDP its third stage). Memory is
added up at every moment of a step that can be its fullest; the estimate is the highest sum. What the model keeps and
makes stands in :mod:`gpt2lab.planning.activations`. Sizes are in bytes.

Not counted: what a GPU's libraries take for themselves, and what its allocator loses between tensors.
"""

import dataclasses
import functools
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from gpt2lab.config import GPT2Config
from gpt2lab.model import GPT2
from gpt2lab.planning import activations
from gpt2lab.planning.activations import FLOAT
from gpt2lab.runs.settings import OptimizerName, Parallel


@dataclass(frozen=True)
class Memory:
    """Bytes that one device holds at one moment of a step.

    Attributes:
        moment: when.
        parameters: what the device keeps of them.
        optimizer: what the optimiser remembers of those.
        gradients: of parameters, as far as they are there.
        gathered: parameters at work that the device does not keep, and gradients on the way to those who do.
        activations: what the backward pass still needs of the forward pass.
        loss: logits, and what is made of them.
        working: what this moment alone needs: gradients of activations, matrices of Muon.
    """

    moment: str
    parameters: int
    optimizer: int
    gradients: int = 0
    gathered: int = 0
    activations: int = 0
    loss: int = 0
    working: int = 0

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, field.name) for field in dataclasses.fields(self)[1:])


@dataclass(frozen=True)
class Way:
    """A way to train a model, as far as memory, traffic and arithmetic depend on it.

    Attributes:
        config: the model.
        rows: windows that one device computes at once, B.
        devices: how many train together.
        parallel: "ddp" or "fsdp"; one device alone does neither.
        activation_checkpointing: blocks keep only their inputs, and are computed again in the backward pass.
        optimizer: "muon" or "adamw".
        precision: "float32", or "bfloat16": autocast, with weights, gradients and optimiser state in float32.
        accumulation_steps: forward passes of an optimiser step.
    """

    config: GPT2Config
    rows: int
    devices: int = 1
    parallel: Parallel = "ddp"
    activation_checkpointing: bool = False
    optimizer: OptimizerName = "muon"
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    accumulation_steps: int = 1

    # Sizes

    @property
    def model(self) -> GPT2:
        """The model's shapes, without values."""
        return _shapes(self.config)

    @cached_property
    def everything(self) -> int:
        """Bytes of all parameters, or of all their gradients."""
        return FLOAT * self.model.num_parameters()

    @cached_property
    def block(self) -> int:
        """Bytes of one block's parameters."""
        return FLOAT * sum(parameter.numel() for parameter in self.model.blocks[0].parameters())

    @property
    def root(self) -> int:
        """Bytes of the parameters outside of the blocks: embeddings, last LayerNorm, an output layer of its own."""
        return self.everything - self.config.num_layers * self.block

    @property
    def embedding(self) -> int:
        """Bytes of the token embedding; the output layer is as large, or the same."""
        return FLOAT * self.config.vocab_size * self.config.embed_dim

    @cached_property
    def matrices(self) -> list[tuple[int, int]]:
        """Shapes of one block's matrices, the smaller side first."""
        found = [parameter.shape for parameter in self.model.blocks[0].parameters() if parameter.dim() == 2]
        return [(min(shape), max(shape)) for shape in found]

    @property
    def width(self) -> int:
        """Bytes of a value in and out of a matrix product."""
        return 2 if self.precision == "bfloat16" else FLOAT

    @property
    def tokens_per_step(self) -> int:
        """Tokens of an optimiser step, over all devices."""
        return self.rows * self.devices * self.accumulation_steps * self.config.max_seq_len

    @property
    def sharded(self) -> bool:
        """Whether every device keeps only its share of what persists."""
        return self.parallel == "fsdp" and self.devices > 1

    @property
    def replicated(self) -> bool:
        """Whether every device keeps everything, and gradients lie in the buckets of DDP."""
        return self.parallel == "ddp" and self.devices > 1

    @property
    def copied(self) -> int:
        """Bytes of the narrow copies that autocast makes of one block's matrices (FSDP gathers narrow ones)."""
        narrow = self.width < FLOAT and not self.sharded
        return self.width * sum(rows * columns for rows, columns in self.matrices) if narrow else 0

    @property
    def gradients_stay(self) -> bool:
        """Whether all gradients have a place all the time: in DDP's buckets, or from one forward pass to the next."""
        return self.accumulation_steps > 1 or self.replicated

    # Memory

    def peak(self) -> Memory:
        """The fullest moment of a step."""
        return max(self.moments(), key=lambda memory: memory.total)

    def moments(self) -> list[Memory]:
        """The moments of a step that can be its fullest, in their order."""
        # Autocast remembers its copies until the forward pass ends, even those that autograd lets go.
        copies = self.config.num_layers * self.copied if self.activation_checkpointing else 0
        found = [self._at_loss("loss", activations.made_for_loss(self.config, self.rows, self.width), copies)]
        if not activations.in_pieces(self.config, self.rows):
            found.append(self._at_loss("loss, backward", activations.made_for_gradient_of_loss(self.config, self.rows)))
        found += map(self._backward_of_block, reversed(range(self.config.num_layers)))
        return [*found, self._backward_of_embeddings(), self._update()]

    def _at_loss(self, moment: str, made: dict[str, int], copies: int = 0) -> Memory:
        kept = sum(activations.kept_of_output(self.config, self.rows, self.width).values())
        return self._memory(
            moment,
            gradients=self._divided(self.everything) if self.gradients_stay else 0,
            gathered=self._gathered,
            activations=self._kept(self.config.num_layers) + kept + copies,
            loss=sum(made.values()),
        )

    def _backward_of_block(self, layer: int) -> Memory:
        """When the second layer of its feed-forward network has its gradients."""
        c = self.config
        second = FLOAT * c.embed_dim * c.ff_hidden_dim
        working = self._stream + self.width * self.rows * c.max_seq_len * c.ff_hidden_dim
        if self.width == FLOAT:
            working += second
        else:  # gradients of the stream and of the matrix are narrow, and widened unless FSDP does that on the way
            working += (self._stream + second) // 2 + (0 if self.sharded else second)
        last = layer == c.num_layers - 1
        again = self._inside_blocks[layer] if self.activation_checkpointing else 0
        return self._memory(
            f"block {layer + 1}, backward",
            gradients=self._gradients(c.num_layers - 1 - layer),
            gathered=self._gathered + (self.block if self.sharded and not last else 0),
            activations=self._kept(layer + 1) + again,
            working=working,
        )

    def _backward_of_embeddings(self) -> Memory:
        c = self.config
        learned = FLOAT * c.max_seq_len * c.embed_dim if c.position == "learned" else 0
        # One that is both embedding and output layer adds up two gradients: in place, if the first was made anew.
        anew = self.width < FLOAT or activations.in_pieces(c, self.rows)
        added = self.embedding * (2 if c.tie_embeddings and not anew else 1)
        return self._memory(
            "embeddings, backward",
            gradients=self._gradients(c.num_layers),
            gathered=self.root + self.block if self.sharded else 0,
            activations=self._kept(0),
            working=self._stream + added + learned,
        )

    def _update(self) -> Memory:
        """The optimiser's step. AdamW works in place; Muon holds all matrices, and what orthogonalising a shape needs.

        (:func:`gpt2lab.training.optimizers.orthogonalise`: the matrices stacked, the same scaled, the result, and six
        squares. With FSDP every device works on its share of the matrices.)
        """
        if self.optimizer == "adamw":
            return self._memory("update", gradients=self._divided(self.everything))
        before = most = 0
        for (rows, columns), number in Counter(self.matrices).items():
            stack = FLOAT * self.config.num_layers * number * rows * columns
            squares = FLOAT * self.config.num_layers * number * rows * rows
            most = max(most, before + 3 * stack + 6 * squares)
            before = stack  # a shape's updates stay until the next ones are made
        share = self._divided(self._all_matrices)
        return self._memory(
            "update",
            gradients=self.everything if self.replicated else share,  # where there are no buckets, AdamW's are gone
            working=self._divided(most) + share,
        )

    def _memory(self, moment: str, **held: int) -> Memory:
        remembered = 2 * self.everything - (self._all_matrices if self.optimizer == "muon" else 0)
        return Memory(moment, self._divided(self.everything), self._divided(remembered), **held)

    def _divided(self, size: int) -> int:
        return -(-size // self.devices) if self.sharded else size

    def _gradients(self, blocks_done: int) -> int:
        """Gradients when the backward pass has left so many blocks behind.

        That of an output layer which is the embedding, too, waits for the embedding's; with FSDP, for the whole root's.
        """
        there = self.everything if self.gradients_stay else blocks_done * self.block
        waits = self.sharded or self.config.tie_embeddings or not self.gradients_stay
        return self._divided(there) + (self.embedding if waits else 0)

    def _kept(self, blocks: int) -> int:
        """Activations of the input and of the first so many blocks."""
        kept = sum(activations.kept_of_input(self.config, self.rows).values()) + blocks * self._stream
        return kept + (0 if self.activation_checkpointing else sum(self._inside_blocks[:blocks]))

    @cached_property
    def _inside_blocks(self) -> list[int]:
        """Activations of each block beside its input."""
        layers = range(self.config.num_layers)
        of_layer = [activations.kept_of_block(self.config, layer, self.rows, self.width) for layer in layers]
        return [sum(kept.values()) + self.copied for kept in of_layer]

    @property
    def _stream(self) -> int:
        """The residual stream at one place, or its gradient."""
        return FLOAT * self.rows * self.config.max_seq_len * self.config.embed_dim

    @property
    def _gathered(self) -> int:
        """With FSDP: what is outside of the blocks, the block at work and the one to come."""
        return self.root + 2 * self.block * self.width // FLOAT if self.sharded else 0

    @property
    def _all_matrices(self) -> int:
        return FLOAT * self.config.num_layers * sum(rows * columns for rows, columns in self.matrices)

    # Traffic and arithmetic

    def traffic(self) -> dict[str, float]:
        """Bytes that each device sends, and receives, in an optimiser step, by what for.

        (Rings: a share of (n-1)/n goes around once in a gather or a scatter, twice in a reduction to all. ZeRO, section
        7: 2 for every value with DDP, 3 with FSDP; here in bytes, for blocks travel narrow and gradients do not.)
        """
        ring = (self.devices - 1) / self.devices
        if not self.sharded:
            return {"gradients, reduced": 2 * ring * self.everything} if self.replicated else {}
        blocks = self.config.num_layers * self.block * self.width // FLOAT
        passes = {
            "blocks, gathered forward and backward": 2 * ring * blocks,
            "embeddings, gathered": ring * self.root,
            "gradients, scattered": ring * self.everything,
        }
        sent = {name: self.accumulation_steps * size for name, size in passes.items()}
        if self.optimizer == "muon":
            sent["matrices, exchanged by Muon"] = 2 * ring * self._all_matrices / self.devices
        return sent

    @property
    def flops_per_token(self) -> float:
        """Floating-point operations of forward and backward pass: every matrix product, attention's scores as well."""
        return 3 * self.model.flops_per_token()

    @property
    def recomputed_per_token(self) -> float:
        """Those of a second forward pass through the blocks, with activation checkpointing."""
        output_layer = 2 * self.config.vocab_size * self.config.embed_dim
        return self.model.flops_per_token() - output_layer if self.activation_checkpointing else 0.0


@functools.cache
def _shapes(config: GPT2Config) -> GPT2:
    with torch.device("meta"):
        return GPT2.from_config(config, seed=0)
