"""minGPT's trainer API, as older users import it: views of the library's classes, with minGPT's own defaults."""

from typing import Any

import gpt2lab
from gpt2lab import CharDataset, Trainer, sample
from gpt2lab.generation import top_k_logits

__all__ = ["CharDataset", "Trainer", "TrainerConfig", "sample", "top_k_logits"]


class TrainerConfig(gpt2lab.TrainerConfig):
    """minGPT's names and defaults; it may be changed, as there.

    Any further keyword is kept as an attribute, as it was there. ``lr_decay`` turns on a warm-up over
    ``warmup_tokens`` and a cosine to 10 % at ``final_tokens``; ``ckpt_path`` is a run folder.
    """

    __setattr__ = object.__setattr__

    def __init__(
        self,
        *,
        max_epochs: float = 10,
        batch_size: int = 8,
        learning_rate: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        grad_norm_clip: float = 1.0,
        weight_decay: float = 0.1,
        lr_decay: bool = False,
        warmup_tokens: float = 375e6,
        final_tokens: float = 260e9,
        ckpt_path: str | None = None,
        num_workers: int = 0,
        **further: Any,
    ) -> None:
        known = {name: further.pop(name) for name in [*further] if name in gpt2lab.TrainerConfig.__dataclass_fields__}
        super().__init__(
            **{
                "max_epochs": max_epochs,
                "batch_size": batch_size,
                "learning_rate": learning_rate,
                "betas": betas,
                "grad_norm_clip": grad_norm_clip,
                "weight_decay": weight_decay,
                "optimizer": "adamw",
                "schedule": "cosine" if lr_decay else "constant",
                "warmup_tokens": warmup_tokens,
                "final_tokens": final_tokens,
                "out": ckpt_path,
                "num_workers": num_workers,
                **known,
            }
        )
        self.lr_decay = lr_decay
        self.ckpt_path = ckpt_path
        for name, value in further.items():
            setattr(self, name, value)
