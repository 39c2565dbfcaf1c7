"""The native training step computes what the modules compute: against them in float64, whatever shapes and switches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2lab.hardware import multiplies_bfloat16, products_in_bfloat16, torch_threads
from gpt2lab.model import GPT2
from gpt2lab.model.arithmetic import foreign
from gpt2lab.model.attention import ScaledDotProductAttention
from gpt2lab.model.fused import LONGEST_TEXT, LONGEST_WINDOW


@st.composite
def models(draw: st.DrawFn) -> tuple[GPT2, int, int]:
    """A model, a number of texts, and their length.

    It is at least 8 wide: the gradient of a LayerNorm of very few numbers is what is left when they nearly cancel.
    """
    heads, layers = draw(st.sampled_from([1, 2, 4, 6])), draw(st.integers(1, 2))
    D = draw(st.integers(max(2, 8 // heads), 20))
    T = draw(st.integers(1, 40))
    switches = {
        "position": draw(st.sampled_from(["learned", "rope", "none"])),
        "num_kv_heads": draw(st.sampled_from([k for k in (1, 2, 3, 6) if heads % k == 0])),
        "window": draw(st.none() | st.integers(1, 50)),
        "sinks": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "activation": draw(st.sampled_from(["gelu_tanh", "gelu", "relu"])),
        "tie_embeddings": draw(st.booleans()),
    }
    if switches["position"] == "rope":
        D += D % 2
    model = GPT2(7, T + draw(st.integers(0, 3)), heads * D, heads, draw(st.integers(1, 70)), layers, seed=1, **switches)
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    with torch.no_grad():
        for parameter in model.parameters():  # scores that differ, and biases and sinks that are not 0
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.3)
    return model, draw(st.integers(1, 3)), T


def gradients(model: GPT2, ids: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    loss = model(ids, targets)
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return loss.detach(), found


def check(model: GPT2, B: int, T: int) -> None:
    model.train()
    generator = torch.Generator().manual_seed(5)
    ids, targets = torch.randint(0, 7, (2, B, T), generator=generator)
    assert foreign(model) is None
    exact = GPT2.from_config(model.config, attention=model.mechanism_class).double()
    exact.load_state_dict({name: tensor.double() for name, tensor in model.state_dict().items()})
    loss, right = gradients(exact, ids, targets)
    with torch.no_grad():
        for parameter in exact.parameters():  # a rounding of float32, to learn how much one matters
            parameter.mul_(1 + (torch.rand(parameter.shape, dtype=torch.float64, generator=generator) - 0.5) * 2**-22)
    _, rounded = gradients(exact, ids, targets)
    _, eager = gradients(model, ids, targets)
    model.native = True
    native_loss, native = gradients(model, ids, targets)
    torch.testing.assert_close(native_loss.double(), loss, rtol=2e-6, atol=1e-6)
    assert native.keys() == eager.keys() == right.keys()
    largest = max(gradient.abs().max() for gradient in right.values())
    for name, gradient in native.items():
        error = (gradient - right[name]).abs().max()
        others = sum((of[name] - right[name]).abs().max() for of in (eager, rounded))
        assert error <= 4 * others + 3e-6 * largest, name


@given(models())
def test_losses_and_gradients_are_those_of_the_modules_in_float64(drawn: tuple[GPT2, int, int]) -> None:
    check(*drawn)


@pytest.mark.parametrize(("T", "window"), [(LONGEST_TEXT, None), (LONGEST_TEXT + 9, LONGEST_WINDOW), (300, 200)])
def test_long_texts_and_windows_on_both_sides_of_the_limits(T: int, window: int | None) -> None:
    check(GPT2(7, T, 24, 2, 30, 2, window=window, position="rope", seed=0), 2, T)


def test_what_torch_attends_in_a_layout_of_its_own() -> None:
    """With sinks the attention of one head comes back in a layout where texts cannot be joined without a copy."""
    check(GPT2(7, 3, 2, 1, 1, 1, qk_norm=True, sinks=True, seed=0), 2, 3)


def test_the_first_tokens_with_very_low_scores() -> None:
    """What is not seen has scores of 0, and must not be taken for the highest ones."""
    model = GPT2(7, 20, 8, 1, 8, 1, position="none", seed=0)
    with torch.no_grad():
        model.blocks[0].attention.query_key_value.bias[:8] = 30.0
        model.blocks[0].attention.query_key_value.bias[8:16] = -30.0
    check(model, 1, 20)


@pytest.mark.parametrize("bias", [False, True])
def test_dropout_drops_what_the_modules_drop(bias: bool) -> None:
    model = GPT2(7, 12, 16, 2, 20, 2, dropout=0.3, bias=bias, position="rope", seed=0)
    model.train()
    ids, targets = torch.randint(0, 7, (2, 3, 12), generator=torch.Generator().manual_seed(5))
    found = []
    for native in (False, True):
        model.native = native
        torch.manual_seed(3)
        found.append(gradients(model, ids, targets))
    torch.testing.assert_close(*found)
    torch.manual_seed(4)
    assert abs(gradients(model, ids, targets)[0] - found[1][0]) > 1e-3


def test_products_in_bfloat16_are_as_near_as_those_of_autocast() -> None:
    model = GPT2(7, 40, 64, 4, 128, 2, window=8, num_kv_heads=2, position="rope", seed=0)
    model.train()
    ids, targets = torch.randint(0, 7, (2, 3, 40), generator=torch.Generator().manual_seed(5))
    exact = gradients(model, ids, targets)[1]
    with torch.autocast("cpu", torch.bfloat16):
        autocast = gradients(model, ids, targets)[1]
    model.native = True
    with products_in_bfloat16(True):
        native = gradients(model, ids, targets)[1]

    def error(found: dict[str, torch.Tensor]) -> float:
        return sum(float((found[name] - exact[name]).square().sum()) for name in exact) ** 0.5

    assert error(native) <= 1.5 * error(autocast)
    if multiplies_bfloat16():
        assert error(native) > error(autocast) / 20  # it is not done in float32


def test_a_mechanism_of_ones_own_attends_itself() -> None:
    class Halved(ScaledDotProductAttention):
        def after_attention(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return y / 2

    check(GPT2(7, 12, 16, 2, 20, 2, attention=Halved, seed=0), 2, 12)


def test_the_number_of_threads_changes_no_bit_of_what_the_step_itself_computes() -> None:
    model = GPT2(7, 33, 24, 4, 50, 1, window=5, sinks=True, position="rope", num_kv_heads=2, seed=0)
    model.native = True
    ids = torch.randint(0, 7, (3, 33), generator=torch.Generator().manual_seed(0))
    found = []
    for number in (1, 2, 3):
        with torch_threads(number):
            found.append(gradients(model, ids, ids))
    for loss, of in found[1:]:
        torch.testing.assert_close(loss, found[0][0])
        for name in ("blocks.0.feed_forward.expand.bias", "blocks.0.attention.query_key_value.bias"):
            torch.testing.assert_close(of[name], found[0][1][name])


def test_what_is_not_a_number_stays_so() -> None:
    """A step whose gradients are not finite is skipped, so they must not come back as numbers."""
    model = GPT2(7, 12, 16, 2, 20, 2, seed=0)
    with torch.no_grad():
        model.blocks[0].attention.query_key_value.weight[0, 0] = float("nan")
    model.native = True
    loss, found = gradients(model, torch.zeros(1, 12, dtype=torch.int64), torch.zeros(1, 12, dtype=torch.int64))
    assert loss.isnan()
    assert found["blocks.0.feed_forward.expand.weight"].isnan().any()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        (
            lambda model: model.double(),
            "is in float64 on cpu, and the native step takes float32",
        ),
        (lambda model: model.blocks[1].register_forward_hook(lambda *_: None), "blocks.1 has a hook"),
        (lambda model: setattr(model.blocks[0], "feed_forward", torch.nn.Identity()), "is a Identity"),
    ],
    ids=["precision", "hook", "module"],
)
def test_what_is_not_the_packages_own_arithmetic_is_left_to_the_modules(changed: object, why: str) -> None:
    model = GPT2(7, 12, 16, 2, 20, 2, seed=0)
    changed(model)  # type: ignore[operator]
    assert why in str(foreign(model))


def test_it_is_differentiable_once() -> None:
    model = GPT2(7, 12, 16, 2, 20, 1, seed=0)
    model.native = True
    ids = torch.zeros(1, 12, dtype=torch.int64)
    (gradient,) = torch.autograd.grad(model(ids, ids), [model.blocks[0].feed_forward.expand.weight], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
