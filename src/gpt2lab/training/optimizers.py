"""Optimisers and the learning rate over a run."""

import math
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from gpt2lab.model import GPT2

OptimizerName = Literal["muon", "adamw"]
Schedule = Literal["cosine", "wsd", "constant"]


class Muon(Optimizer):
    """Momentum, orthogonalised: every update moves all directions of a matrix by the same amount.

    Jordan et al. 2024 (kellerjordan.github.io/posts/muon), scaled by 0.2·sqrt(max(rows, columns)) as in Liu et al. 2025
    (arXiv:2502.16982, section 2.2), so that updates are as large as AdamW's and one learning rate serves both.
    Unlike ``torch.optim.Muon`` it orthogonalises equal shapes in one batch, and in float32 on CPUs, where bfloat16 may
    crawl and would make runs with different numbers of processes disagree.

    Args:
        params: matrices (2-D).
        lr: learning rate.
        momentum: of the running mean of gradients, applied as Nesterov's.
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for shape, parameters in by_shape.items():
                gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
                momenta = [
                    self.state[p].setdefault("momentum", torch.zeros_like(p, memory_format=torch.preserve_format))
                    for p in parameters
                ]
                torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
                blended = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
                updates = orthogonalise(torch.stack(blended)).unbind()
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, updates, alpha=-group["lr"] * 0.2 * math.sqrt(max(shape)))


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring all singular values of each matrix (N, rows, columns) near 1, by five Newton-Schulz steps.

    Jordan et al. 2024: each step maps a singular value s to a·s + b·s³ + c·s⁵.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    x = x.mT if tall else x
    return x.to(matrices.dtype)


def build_optimizers(
    model: GPT2, name: OptimizerName, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> list[Optimizer]:
    """AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest.

    Only matrices decay, as in GPT-3 (Brown et al. 2020, appendix B) and minGPT.
    """
    muon, decayed, plain = [], [], []
    for parameter_name, parameter in model.named_parameters():
        if parameter.dim() == 2 and parameter_name.startswith("blocks.") and name == "muon":
            muon.append(parameter)
        elif parameter.dim() >= 2:
            decayed.append(parameter)
        else:
            plain.append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    optimizers: list[Optimizer] = [
        AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas, fused=True)
    ]
    if muon:
        optimizers.append(Muon(muon, lr=learning_rate, weight_decay=weight_decay))
    return optimizers


def learning_rate_scale(schedule: Schedule, tokens: float, warmup: float, total: float, floor: float = 0.1) -> float:
    """What the learning rate is multiplied with, after so many tokens.

    Args:
        schedule: ``"cosine"``, along half a cosine; ``"wsd"`` (warm-up, stable, decay: Hu et al. 2024,
            arXiv:2404.06395), constant, then straight down over the last half; ``"constant"``.
        tokens: seen, this step's included.
        warmup: tokens over which the rate rises from 0.
        total: tokens at which the decay ends.
        floor: where the decay ends, as a share of the full rate.
    """
    if tokens < warmup:
        return tokens / warmup
    progress = min(1.0, (tokens - warmup) / max(1.0, total - warmup))
    if schedule == "cosine":
        return max(floor, 0.5 * (1.0 + math.cos(math.pi * progress)))
    if schedule == "wsd":
        return floor + (1.0 - floor) * min(1.0, 2.0 * (1.0 - progress))
    return 1.0
