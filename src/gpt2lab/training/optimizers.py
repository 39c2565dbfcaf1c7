"""Optimisers and the learning rate over a run."""

import inspect
import math
from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor
from torch.optim import Optimizer

from gpt2lab.model import GPT2
from gpt2lab.runs.settings import OptimizerName, Schedule
from gpt2lab.training.sharding import apply_to_whole


class _Eager(Optimizer):
    """An optimiser that nobody compiles, without torch's wrappers.

    They keep torch's compiler out of these methods, and import it for that, whether anything is compiled or not: 2 to 3
    seconds of every start.

    Attributes:
        found_inf: a float scalar on the device, or None: where it is 1, :meth:`step` changes nothing, whatever the
            gradients are. (Under this name torch's gradient scaler tells it to torch's fused optimisers.) So the host
            does not have to wait to know whether gradients are finite.
    """

    found_inf: Tensor | None = None

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


class AdamW(_Eager, torch.optim.AdamW):
    """torch's AdamW (without ``differentiable``)."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))


class Muon(_Eager):
    """Momentum, orthogonalised: every update moves all directions of a matrix by the same amount.

    Jordan et al. 2024 (kellerjordan.github.io/posts/muon), scaled by 0.2·sqrt(max(rows, columns)) as in Liu et al.
    2025 (arXiv:2502.16982, section 2.2), so that updates are as large as AdamW's and one learning rate serves both.
    Unlike ``torch.optim.Muon`` it orthogonalises equal shapes in one batch, and in float32: bfloat16 crawls on many
    CPUs, and would make runs with different numbers of processes disagree. Of shards (FSDP) every process gathers some
    of the matrices, orthogonalises them, and gives the others their shares of the updates.

    Args:
        params: matrices (2-D).
        lr: learning rate.
        momentum: of the running mean of gradients, applied as Nesterov's.
        weight_decay: decoupled, as in AdamW.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float = 1e-3, momentum: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient, unless ``found_inf`` is 1."""
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            gradients = [parameter.grad for parameter in parameters]
            for parameter in parameters:
                if "momentum" not in self.state[parameter]:
                    self.state[parameter]["momentum"] = torch.zeros_like(parameter)
            momenta = [self.state[parameter]["momentum"] for parameter in parameters]
            taken: Tensor | float = 1.0  # or 0, for no step
            if self.found_inf is not None:
                taken = 1.0 - self.found_inf.to(group["params"][0].dtype)
                for gradient in gradients:
                    gradient.masked_fill_(self.found_inf != 0, 0.0)  # 0 times infinity would not be 0
            for momentum, gradient in zip(momenta, gradients, strict=True):
                momentum.lerp_(gradient, (1 - group["momentum"]) * taken)
            blended = torch._foreach_lerp(gradients, momenta, group["momentum"])  # Nesterov
            by_shape: dict[tuple[int, ...], list[int]] = {}
            for index, matrix in enumerate(blended):  # a wide matrix and a tall one of the same sizes go together
                by_shape.setdefault(tuple(sorted(matrix.shape)), []).append(index)
            for (rows, columns), indices in by_shape.items():
                wide = [blended[i] if blended[i].shape[0] == rows else blended[i].mT for i in indices]
                updates = apply_to_whole(orthogonalise, torch.stack(wide))
                for i, update in zip(indices, updates, strict=True):
                    as_stored = update if blended[i].shape[0] == rows else update.mT
                    moved = parameters[i] * (1 - group["lr"] * group["weight_decay"])
                    moved.add_(as_stored, alpha=-group["lr"] * 0.2 * math.sqrt(columns))
                    parameters[i].lerp_(moved, taken)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring all singular values of each matrix near 1, by four Newton-Schulz steps.

    (Usually five are taken. Four cost a fifth less; with three a training learns less: docs/recipe.md.)

    Jordan et al. 2024: a step maps X to p(XXᵀ) X with p(G) = a + b·G + c·G², and so each singular value s to
    a·s + b·s³ + c·s⁵. The steps' polynomials in one G commute, so their product is gathered on the small matrices,
    rows × rows, and X is multiplied once, at the end: less than half the time of the textbook's order for GPT-2's
    feed-forward matrices.

    Args:
        matrices: float32 (N, rows, columns) with rows ≤ columns.

    Returns:
        the same shape.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x: Tensor = matrices / (matrices.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    gram = x @ x.mT  # (N, rows, rows)
    polynomials: list[Tensor] = []
    for _ in range(4):
        if polynomials:
            gram = polynomials[-1] @ gram @ polynomials[-1]
        polynomials.append(torch.baddbmm(gram, gram, gram, beta=b, alpha=c))
        polynomials[-1].diagonal(dim1=-2, dim2=-1).add_(a)
    return reduce(torch.matmul, reversed(polynomials)) @ x


def build_optimizers(
    model: GPT2, name: OptimizerName, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> list[AdamW | Muon]:
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
    optimizers: list[AdamW | Muon] = [
        AdamW([group for group in groups if group["params"]], lr=learning_rate, betas=betas, fused=True)
    ]
    if muon:
        optimizers.append(Muon(muon, lr=learning_rate, weight_decay=weight_decay))
    return optimizers


def learning_rate_scale(schedule: Schedule, tokens: float, warmup: float, total: float, floor: float = 0.1) -> float:
    """What the learning rate is multiplied with, after so many tokens.

    Args:
        schedule: ``"cosine"``, along half a cosine; ``"wsd"`` (warm-up, stable, decay: Hu et al. 2024,
            arXiv:2404.06395), constant, then straight down over the last half; ``"constant"``, from the first step.
        tokens: seen, this step's included.
        warmup: tokens over which the rate rises from 0.
        total: tokens at which the decay ends.
        floor: where the decay ends, as a share of the full rate.
    """
    if schedule == "constant":
        return 1.0
    if tokens < warmup:
        return tokens / warmup
    progress = min(1.0, (tokens - warmup) / max(1.0, total - warmup))
    if schedule == "cosine":
        return max(floor, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return floor + (1.0 - floor) * min(1.0, 2.0 * (1.0 - progress))
