"""A warning: what attention that reads the future does to the losses that one looks at, and to the text.

    python experiments/looks_ahead.py [--steps 400] [--text FILE]

One of the write-ups that this project follows has a windowed attention that sees whole blocks of five tokens: its own,
the one before, and the one after. `gpt2lab train` and `compare` refuse such a mechanism, so this script has a training
loop of its own. Beside it stands a causal window of as many tokens.
"""

import argparse

from gpt2lab import GPT2, CausalityError, ScaledDotProductAttention, SlidingWindowAttention, assert_causal
from gpt2lab.data import StatelessSampler, TokenDataset
from gpt2lab.data.text import Text
from gpt2lab.training.optimizers import build_optimizers, learning_rate_scale

import torch
from torch import Tensor
from torch.nn import functional as F

CONTEXT, BLOCK = 25, 5


class LooksAhead(ScaledDotProductAttention):
    """Each token sees its block of five, the block before, and the block after."""

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        q_pos: Tensor | None = None,
        k_pos: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Tensor:
        block = torch.arange(q.shape[2]) // BLOCK
        near = (block[:, None] - block[None, :]).abs() <= 1  # (T, T)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=near)


def train(model: GPT2, dataset: TokenDataset, steps: int) -> float:
    """The default recipe; returns the mean training loss of the last 50 steps."""
    optimizers = build_optimizers(model, "muon", 8e-3, 0.1, (0.8, 0.95))
    losses: list[float] = []
    for step, indices in enumerate(StatelessSampler(len(dataset), 41, num_steps=steps), 1):
        loss = model(*dataset.__getitems__(indices))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = 8e-3 * learning_rate_scale("wsd", step, 10, steps)
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-50:]) / len(losses[-50:])


@torch.inference_mode()
def held_out(model: GPT2, dataset: TokenDataset, windows: int = 400) -> tuple[float, float]:
    """Loss on held-out text: with the whole context at hand, and with each token's future really not there yet."""
    x, y = dataset.__getitems__(range(0, len(dataset), len(dataset) // windows))
    whole = F.cross_entropy(model(x).flatten(0, 1), y.flatten()).item()
    each = [F.cross_entropy(model(x[:, :t])[:, -1], y[:, t - 1]).item() for t in range(1, CONTEXT + 1)]
    return whole, sum(each) / CONTEXT


@torch.inference_mode()
def write(model: GPT2, first: int, num_tokens: int = 300) -> list[int]:
    """Sample without a cache, which such a mechanism could not use; temperature 0.8."""
    ids = torch.tensor([[first]])
    generator = torch.Generator().manual_seed(0)
    for _ in range(num_tokens):
        probabilities = (model(ids[:, -CONTEXT:])[0, -1] / 0.8).softmax(-1)
        ids = torch.cat((ids, torch.multinomial(probabilities, 1, generator=generator)[None]), 1)
    return ids[0].tolist()


def main() -> None:
    """Train both, and print what each looks like."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", help="file, folder or glob (default: Shakespeare's plays)")
    parser.add_argument("--steps", type=int, default=400)
    options = parser.parse_args()
    text = Text.open(text=options.text)
    tokenizer = text.tokenizer
    training, test = text.dataset("train", CONTEXT), text.dataset("test", CONTEXT)
    rows, samples = [], []
    for name, mechanism, window in (
        ("a causal window of 10", SlidingWindowAttention, 2 * BLOCK),
        ("blocks of 5, one ahead", LooksAhead, None),
    ):
        model = GPT2(tokenizer.vocab_size, CONTEXT, 128, 4, 512, 3, attention=mechanism, window=window, seed=1)
        try:
            assert_causal(model)
        except CausalityError as error:
            print(f"{name}: {error}\n")
        last = train(model, training, options.steps)
        whole, honest = held_out(model.eval(), test)
        rows.append(f"| {name} | {last:.3f} | {whole:.3f} | {honest:.3f} |")
        samples.append(f"{name}:\n\n{tokenizer.decode(write(model, int(test.tokens[0])))}\n")
    print("| attention | training loss | held-out, whole context given | held-out, future not there yet |")
    print("|---|---|---|---|")
    print("\n".join(rows), "\n\n" + "\n".join(samples))


if __name__ == "__main__":
    main()
