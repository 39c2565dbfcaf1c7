"""What several processes compute, for test_distributed.py: ``torchrun … together.py FOLDER``.

Trains a small model in every way that this number of processes offers, and leaves what it found in
``FOLDER/<way>.json``, with checkpoints beside it.
"""

import io
import itertools
import json
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from gpt2lab.data import CharTokenizer, StatelessSampler, TokenDataset
from gpt2lab.generation import generate
from gpt2lab.model import GPT2
from gpt2lab.training import Trainer, TrainerConfig
from gpt2lab.training.processes import averaged, joined_processes, num_processes, rank
from gpt2lab.training.sharding import gathered

STEPS = 20


class Unmarked(TokenDataset):
    """Windows without targets: every second row of some batches, so that whole processes have none, and one batch."""

    def __getitems__(self, indices):  # type: ignore[no-untyped-def]
        order = StatelessSampler(len(self), 8)
        without = {int(index) for step in (1, 3) for index in order.batch(step)[1::2]} | set(order.batch(4).tolist())
        x, y = super().__getitems__(indices)
        return x, y.masked_fill(torch.tensor([[index in without] for index in indices]), -100)


def losses_where_targets_lack(data: TokenDataset, parallel: str) -> list[float | None]:
    """Of seven steps; None where there were no targets."""
    config = TrainerConfig(max_steps=7, batch_size=8, parallel=parallel, compile="no", device="cpu")  # type: ignore[arg-type]
    model = GPT2(data.vocab_size, 16, 28, 2, 30, 2, seed=0)
    trainer = Trainer(model, Unmarked(data.tokens, 16, data.vocab_size), None, config)
    batches = trainer.batches()
    losses = [trainer.update(batches)[0] for _ in range(7)]
    return [None if loss is None else averaged([loss])[0] for loss in losses]


def main(folder: Path) -> None:
    text = (folder / "text.txt").read_text(encoding="utf-8")
    tokenizer = CharTokenizer(text)
    ids = tokenizer.encode(text).astype(np.uint16)
    train = TokenDataset(ids[:6000], 16, tokenizer.vocab_size)
    test = TokenDataset(ids[6000:7003], 16, tokenizer.vocab_size)  # 63 windows, which no number of processes divides
    torch.set_num_threads(1)
    kinds = ["ddp"] if num_processes() == 1 else ["ddp", "fsdp"]
    lacking = {kind: losses_where_targets_lack(train, kind) for kind in kinds}
    if rank() == 0:
        (folder / "lacking.json").write_text(json.dumps(lacking), encoding="utf-8")
    ways = [(*way, "float32") for way in itertools.product(kinds, ["adamw", "muon"], [1, 2])]
    for parallel, optimizer, accumulation, precision in [*ways, (kinds[-1], "muon", 1, "bfloat16")]:
        name = f"{parallel}-{optimizer}-{accumulation}" + ("-bfloat16" if precision == "bfloat16" else "")
        config = TrainerConfig(
            max_steps=STEPS,
            batch_size=8 // accumulation,
            accumulation_steps=accumulation,
            optimizer=optimizer,  # type: ignore[arg-type]
            parallel=parallel,  # type: ignore[arg-type]
            activation_checkpointing=accumulation == 2,
            precision=precision,  # type: ignore[arg-type]
            compile="no",
            device="cpu",
            eval_every=10,
            checkpoint_every=12,
            keep=9,
            async_checkpoints=accumulation == 2,
            out=folder / name,
        )
        with torch.device("meta") if parallel == "fsdp" else nullcontext():
            # 7 rows of the narrowest matrix, so that shards are not alike
            model = GPT2(tokenizer.vocab_size, 16, 28, 2, 30, 2, seed=0, position="rope", num_kv_heads=1, window=5)
        trainer = Trainer(model, train, test, config, console=Console(file=io.StringIO()))
        initial = {name: gathered(tensor).clone() for name, tensor in model.state_dict().items()}
        losses: list[float] = []
        written: list[list[int]] = generate(model, torch.zeros(1, 1, dtype=torch.int64), 3, temperature=0).tolist()
        update = trainer.update

        def watched(batches, update=update, losses=losses):  # type: ignore[no-untyped-def]
            loss, tokens = update(batches)
            losses += averaged([loss])
            return loss, tokens

        def write(record, written=written, model=model):  # type: ignore[no-untyped-def]
            if record["step"] == 10:  # a sink that generates, in every process
                model.eval()
                written += generate(model, torch.zeros(1, 1, dtype=torch.int64), 10, temperature=0).tolist()
                model.train()

        dtypes: dict[str, str] = {}

        def look(block, arguments, dtypes=dtypes):  # type: ignore[no-untyped-def]
            weight = block.feed_forward.expand.weight
            for what, tensor in {"weight": weight, "hidden": arguments[0], "rotary": arguments[1].rotary[0]}.items():
                dtypes[what] = str(tensor.dtype)

        model.blocks[1].register_forward_pre_hook(look)
        trainer.update = watched  # type: ignore[method-assign]
        trainer.sinks.append(write)
        result = trainer.train()
        reference = GPT2(tokenizer.vocab_size, 16, 28, 2, 30, 2, seed=0, position="rope", num_kv_heads=1, window=5)
        if rank() == 0:
            found = {
                "losses": losses,
                "validation": result.validation_loss,
                "tokens": trainer.state.tokens,
                "written": written,
                "dtypes": dtypes,
                "initial_as_alone": all(torch.equal(initial[n], t) for n, t in reference.state_dict().items()),
            }
            (folder / f"{name}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    with joined_processes("cpu", 600):
        main(Path(sys.argv[1]))
