"""Muon, AdamW's groups, and the learning rate over a run, each against formulas written out here."""

import math
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from gpt2lab.model import GPT2
from gpt2lab.training import Muon
from gpt2lab.training.optimizers import OptimizerName, build_optimizers, learning_rate_scale, orthogonalise

SHAPES = [(8, 8), (6, 20), (1, 5), (16, 48)]


def random_matrix(shape: tuple[int, int], values: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Left vectors (rows, r) and right vectors (r, columns) of length 1, and the matrix with those singular values."""
    generator = torch.Generator().manual_seed(seed)
    square = [torch.randn(n, n, generator=generator, dtype=torch.float64) for n in shape]
    left, right = (torch.linalg.qr(part).Q[:, : len(values)] for part in square)
    return left, right.T, left @ values.diag() @ right.T


def newton_schulz(values: Tensor) -> Tensor:
    """Where four steps of the quintic bring singular values, number by number."""
    for _ in range(4):
        values = 3.4445 * values - 4.7750 * values**3 + 2.0315 * values**5
    return values


# Orthogonalising


@given(st.sampled_from(SHAPES), st.data(), st.integers(0, 2**32))
def test_orthogonalising_brings_singular_values_near_one_and_keeps_the_directions(
    shape: tuple[int, int], data: st.DataObject, seed: int
) -> None:
    rank = min(shape)
    drawn = data.draw(st.lists(st.floats(0.02, 1.0), min_size=rank, max_size=rank))
    values = torch.tensor(drawn, dtype=torch.float64)
    left, right, matrix = random_matrix(shape, values, seed)
    found = left.T @ orthogonalise(matrix[None])[0] @ right.T  # in the matrix's own directions
    assert (found - newton_schulz(values / (values.norm() + 1e-7)).diag()).abs().max() < 1e-9
    large = values / values.norm() > 0.02
    assert found.diag()[large].min() > 0.5
    assert found.diag().max() < 1.5


def test_a_batch_of_matrices_is_orthogonalised_like_each_alone() -> None:
    matrices = torch.randn(5, 12, 30, generator=torch.Generator().manual_seed(0))
    alone = torch.cat([orthogonalise(matrix[None]) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices), alone, atol=1e-5, rtol=0)


def test_the_size_of_a_gradient_does_not_matter_and_its_sign_does() -> None:
    matrix = torch.randn(1, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(orthogonalise(1e4 * matrix), orthogonalise(matrix), atol=1e-6, rtol=0)
    torch.testing.assert_close(orthogonalise(-matrix), -orthogonalise(matrix))


def test_a_gradient_of_zero_stays_zero_instead_of_becoming_nan() -> None:
    assert orthogonalise(torch.zeros(1, 3, 4)).eq(0).all()


# Muon


def random_gradients(parameters: list[nn.Parameter], step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter.dtype)


def test_muon_steps_are_those_of_its_formula_written_out() -> None:
    lr, momentum, decay = 0.02, 0.9, 0.1
    shapes = [(6, 10), (10, 6), (6, 10), (5, 5)]  # two of them share a batch
    parameters = [nn.Parameter(torch.ones(shape, dtype=torch.float64)) for shape in shapes]
    expected = [parameter.detach().clone() for parameter in parameters]
    means = [torch.zeros_like(weight) for weight in expected]
    optimizer = Muon(parameters, lr=lr, momentum=momentum, weight_decay=decay)
    for step in range(4):
        random_gradients(parameters, step)
        optimizer.step()
        for i, (shape, parameter) in enumerate(zip(shapes, parameters, strict=True)):
            assert parameter.grad is not None
            means[i] = momentum * means[i] + (1 - momentum) * parameter.grad
            nesterov = momentum * means[i] + (1 - momentum) * parameter.grad
            left, values, right = torch.linalg.svd(nesterov, full_matrices=False)
            update = left @ newton_schulz(values / values.norm()).diag() @ right
            expected[i] = expected[i] * (1 - lr * decay) - lr * 0.2 * math.sqrt(max(shape)) * update
    for parameter, weight in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.data, weight, atol=1e-6, rtol=0)


def test_muon_agrees_with_torchs_own_within_bfloat16() -> None:
    ours, theirs = ([nn.Parameter(torch.zeros(24, 16)), nn.Parameter(torch.zeros(16, 40))] for _ in range(2))
    optimizers = (
        Muon(ours, lr=0.1, momentum=0.95, weight_decay=0.1),
        torch.optim.Muon(theirs, lr=0.1, momentum=0.95, weight_decay=0.1, ns_steps=4, adjust_lr_fn="match_rms_adamw"),
    )
    for step in range(3):
        for parameters, optimizer in zip((ours, theirs), optimizers, strict=True):
            random_gradients(parameters, step)
            optimizer.step()
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine - other).norm() < 0.03 * other.norm()


def test_muon_leaves_a_matrix_without_a_gradient_alone() -> None:
    parameters = [nn.Parameter(torch.ones(3, 3)) for _ in range(2)]
    parameters[0].grad = torch.eye(3)
    Muon(parameters, lr=0.1, weight_decay=0.5).step()
    assert parameters[1].eq(1).all()
    assert not parameters[0].eq(1).any()


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_where_the_gradients_were_found_infinite_nothing_changes(name: OptimizerName) -> None:
    """Not even what is remembered: the steps around are those of an optimiser that never saw that one."""
    models = [GPT2(11, 8, 16, 2, 32, 2, seed=0) for _ in range(2)]
    for model, bad in zip(models, (None, 2), strict=True):
        optimizers = build_optimizers(model, name, 0.1, 0.5, (0.9, 0.95))
        for step in range(5):
            if step == 2 and bad is None:
                continue
            random_gradients(list(model.parameters()), step)
            for optimizer in optimizers:
                optimizer.found_inf = None if bad is None else torch.tensor(float(step == bad))
            if step == bad:
                for parameter in model.parameters():
                    assert parameter.grad is not None
                    parameter.grad.view(-1)[0] = math.nan
            for optimizer in optimizers:
                optimizer.step()
        assert all(parameter.isfinite().all() for parameter in model.parameters())
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, other)


# Who gets which optimiser


@pytest.mark.parametrize("tied", [True, False])
def test_adamw_decays_matrices_and_nothing_else(tied: bool) -> None:
    model = GPT2(11, 8, 16, 2, 32, 2, tie_embeddings=tied, seed=0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    (optimizer,) = build_optimizers(model, "adamw", 0.1, 0.5, (0.9, 0.95))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)  # so that only the decay moves anything
    optimizer.step()
    for name, weight in model.named_parameters():
        share = 0.95 if weight.dim() >= 2 else 1.0  # 1 - 0.1 · 0.5
        torch.testing.assert_close(weight.data, share * before[name], msg=name)


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = GPT2(11, 8, 16, 2, 32, 2, tie_embeddings=False)
    adamw, muon = build_optimizers(model, "muon", 1e-3, 0.1, (0.9, 0.95))
    names = {parameter: name for name, parameter in model.named_parameters()}
    theirs = [{names[p] for group in optimizer.param_groups for p in group["params"]} for optimizer in (adamw, muon)]
    assert isinstance(muon, Muon)
    assert theirs[1] == {
        f"blocks.{layer}.{matrix}.weight"
        for layer in (0, 1)
        for matrix in ("attention.query_key_value", "attention.output", "feed_forward.expand", "feed_forward.contract")
    }
    assert theirs[0] == set(names.values()) - theirs[1]


# The learning rate


def minigpt_scale(tokens: int, warmup: float, final: float) -> float:
    """minGPT's trainer.py, line by line."""
    if tokens < warmup:
        return float(tokens) / float(max(1, warmup))
    progress = float(tokens - warmup) / float(max(1, final - warmup))
    return max(0.1, 0.5 * (1.0 + math.cos(math.pi * progress)))


@given(st.integers(1, 10_000), st.integers(0, 5_000), st.integers(5_001, 10_000))
def test_the_cosine_schedule_is_mingpts_up_to_the_end(tokens: int, warmup: int, final: int) -> None:
    tokens = min(tokens, final)
    assert learning_rate_scale("cosine", tokens, warmup, final) == pytest.approx(minigpt_scale(tokens, warmup, final))


def test_the_cosine_schedule_stays_at_its_floor_after_the_end() -> None:
    assert [learning_rate_scale("cosine", tokens, 0, 100) for tokens in (100, 150, 200, 10_000)] == [0.1] * 4


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("wsd", {5: 0.5, 10: 1, 30: 1, 60: 1, 85: 0.55, 110: 0.1, 500: 0.1}),
        ("constant", {5: 1, 10: 1, 60: 1, 110: 1, 500: 1}),
        ("cosine", {5: 0.5, 10: 1, 35: 0.5 + math.sqrt(0.125), 60: 0.5, 110: 0.1}),
    ],
)
def test_a_schedule_passes_through_these_values(schedule: str, expected: dict[int, float]) -> None:
    found = {tokens: learning_rate_scale(schedule, tokens, 10, 110) for tokens in expected}
    assert found == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["wsd", "constant", "cosine"])
def test_without_a_warmup_the_first_step_has_nearly_the_full_rate(schedule: str) -> None:
    assert learning_rate_scale(schedule, 1, 0, 1000) == pytest.approx(1, abs=1e-4)


# What they leave alone


def test_training_without_compiling_does_not_import_the_compiler() -> None:
    script = (
        "import sys\n"
        "from gpt2lab import GPT2, CharDataset, Trainer, TrainerConfig\n"
        "data = CharDataset('to be or not to be ' * 9, block_size=8)\n"
        "Trainer(GPT2(data.vocab_size, 8, 8, 2, 16, 1), data, data, TrainerConfig(max_steps=2, compile='no')).train()\n"
        "print('torch._dynamo' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "False"
