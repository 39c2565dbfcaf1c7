"""The loss: a float32 number or a wider one on every path, the same whether all logits are held at once or not."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from gpt2lab.model import GPT2, loss
from tests.model.reference import random_ids, randomised

WAYS = ["float64", "float32", "bfloat16", "autocast"]


@pytest.fixture(params=[False, True], ids=["all logits", "in pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param:
        monkeypatch.setattr(loss, "MANY_LOGITS", 0)
        monkeypatch.setattr(loss, "LOSS_PIECE", 7)
    return bool(request.param)


@pytest.mark.parametrize("learning", [True, False], ids=["learning", "no_grad"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("way", WAYS)
def test_it_is_the_cross_entropy_of_the_logits_in_float64(pieces: bool, way: str, tied: bool, learning: bool) -> None:
    dtype = getattr(torch, "float32" if way == "autocast" else way)
    model = randomised(GPT2(901, 16, 8, 2, 8, 1, tie_embeddings=tied), dtype=dtype)
    ids, targets = random_ids(model, 20, 16), random_ids(model, 20, 16, seed=1)
    targets[::3, 5:] = -100
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"), torch.set_grad_enabled(learning):
        logits, mean, total = model(ids), model(ids, targets), model(ids, targets, reduction="sum")
    right = F.cross_entropy(logits.double().flatten(0, 1), targets.flatten())
    assert mean.dtype == total.dtype == (torch.float64 if way == "float64" else torch.float32)
    assert mean.requires_grad == learning
    close = {"float64": 1e-11, "float32": 1e-5}.get(way, 1e-3)
    assert mean.item() == pytest.approx(right.item(), abs=close)
    assert (total / (targets >= 0).sum()).item() == pytest.approx(mean.item(), rel=1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_its_gradients_are_those_of_all_logits_in_float64(pieces: bool, way: str) -> None:
    dtype = getattr(torch, "float32" if way == "autocast" else way)
    model = randomised(GPT2(901, 16, 8, 2, 8, 1), dtype=dtype)
    ids, targets = random_ids(model, 20, 16), random_ids(model, 20, 16, seed=1)
    targets[::3, 5:] = -100
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        found = torch.autograd.grad(model(ids, targets) / 3, list(model.parameters()))
    model.double()
    right = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    close = {"float64": 1e-12, "float32": 1e-5}.get(way, 0.05)
    for gradient, expected in zip(found, torch.autograd.grad(right / 3, list(model.parameters())), strict=True):
        assert gradient.dtype == dtype
        assert torch.linalg.norm(gradient.double() - expected) <= close * (1e-3 + torch.linalg.norm(expected))


@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 40), st.integers(0, 1000))
def test_any_number_of_tokens_and_pieces_has_one_loss(tokens: int, piece: int, hidden_ones: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    hidden, head = (torch.randn(n, 5, generator=draw, dtype=torch.float64, requires_grad=True) for n in (tokens, 11))
    targets = torch.randint(11, (tokens,), generator=draw)
    targets[:hidden_ones] = -100
    with pytest.MonkeyPatch.context() as patch:
        whole = loss.cross_entropy(hidden, head, targets, "sum")
        patch.setattr(loss, "MANY_LOGITS", 0)
        patch.setattr(loss, "LOSS_PIECE", piece)
        in_pieces = loss.cross_entropy(hidden, head, targets, "sum")
        assert loss.cross_entropy(hidden, head, targets).isnan() == (hidden_ones >= tokens)
    torch.testing.assert_close(in_pieces, whole)
    for ours, theirs in zip(*(torch.autograd.grad(x, (hidden, head)) for x in (in_pieces, whole)), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_loss_in_pieces_is_differentiated_once_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "MANY_LOGITS", 0)
    hidden, head = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3)
    total = loss.cross_entropy(hidden, head, torch.tensor([0, 1, 2, 3]))
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once; make it again"):
        total.backward()


def test_the_published_vocabulary_comes_in_pieces_in_bfloat16_too() -> None:
    model = GPT2(50257, 1024, 16, 2, 16, 1, seed=0)
    ids, targets = (torch.randint(50257, (1, 1024), generator=torch.Generator().manual_seed(s)) for s in (1, 2))
    assert loss.loss_in_pieces(1024, 50257)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = model(ids, targets)
        hidden = model.hidden(ids).bfloat16().double()
    right = F.cross_entropy((hidden @ model.output_weight.bfloat16().double().T).flatten(0, 1), targets.flatten())
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(right.item(), abs=1e-3)
