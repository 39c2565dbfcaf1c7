"""Evaluation against a loop that predicts one token at a time with a dense reference."""

import math

import numpy as np
import pytest
import torch

from gpt2lab.data import BPETokenizer, CharTokenizer, Corpus, StatelessSampler, TokenDataset, Tokenizer
from gpt2lab.errors import InputError
from gpt2lab.evaluation import Evaluation, estimate_loss, evaluate
from gpt2lab.model import GPT2
from tests.model.reference import dense_logits, randomised

CONTEXT = 6
NON_ASCII = "Größe, naïve café — 中日 🙂 'tis the end.\nÀ bientôt, cœur! " * 4


def make_model(vocab_size: int, **switches: object) -> GPT2:
    return randomised(GPT2(vocab_size, CONTEXT, 8, 2, 16, 2, **switches))


def trained_bpe(tmp_path_factory: pytest.TempPathFactory) -> BPETokenizer:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(NON_ASCII, encoding="utf-8")
    corpus = Corpus("text", (path,))
    return BPETokenizer.train(corpus.chunks(), 275)  # few merges: characters are cut in two


@pytest.fixture(scope="module", params=["char", "bpe"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return CharTokenizer(NON_ASCII) if request.param == "char" else trained_bpe(tmp_path_factory)


def token_by_token(model: GPT2, tokens: np.ndarray, context: int) -> tuple[list[float], list[bool], list[int]]:
    """Nats, whether the guess was right, and the tokens of context, for every token but the first."""
    ids = torch.from_numpy(tokens)
    nats, right, contexts = [], [], []
    for target in range(1, len(ids)):
        start = min((target - 1) // context * context, len(ids) - 1 - context)
        logits = dense_logits(model, ids[start:target])[-1]
        nats.append(-logits.log_softmax(-1)[ids[target]].item())
        right.append(int(logits.argmax()) == int(ids[target]))
        contexts.append(target - start)
    return nats, right, contexts


@pytest.mark.parametrize("length", [CONTEXT + 1, CONTEXT + 2, 2 * CONTEXT + 1, 100])
@pytest.mark.parametrize(
    "switches", [{}, {"position": "rope", "num_kv_heads": 1, "window": (3, None)}], ids=["original", "modern"]
)
def test_every_number_is_that_of_a_loop_over_single_tokens(
    tokenizer: Tokenizer, length: int, switches: dict[str, object]
) -> None:
    tokens = tokenizer.encode(NON_ASCII)[:length]
    model = make_model(tokenizer.vocab_size, **switches)
    found = evaluate(model, tokens, tokenizer)
    nats, right, contexts = token_by_token(model, tokens, CONTEXT)
    assert found.tokens == len(nats) == length - 1
    assert found.loss == pytest.approx(sum(nats) / len(nats), abs=1e-6)
    assert found.perplexity == pytest.approx(math.exp(sum(nats) / len(nats)), rel=1e-6)
    assert found.accuracy == sum(right) / len(right)
    by_position = [[n for n, c in zip(nats, contexts, strict=True) if c == have] for have in range(1, CONTEXT + 1)]
    assert found.loss_by_position == pytest.approx([sum(part) / len(part) for part in by_position], abs=1e-6)


def test_bits_are_shared_out_over_the_characters_and_bytes_that_were_predicted(tokenizer: Tokenizer) -> None:
    tokens = tokenizer.encode(NON_ASCII)
    first = tokenizer.decode(tokens[:1])
    predicted = NON_ASCII.removeprefix(first)
    found = evaluate(make_model(tokenizer.vocab_size), tokens, tokenizer)
    bits = found.loss * found.tokens / math.log(2)
    assert found.bits_per_character == pytest.approx(bits / len(predicted), rel=1e-9)
    assert found.bits_per_byte == pytest.approx(bits / len(predicted.encode()), rel=1e-9)
    assert len(predicted.encode()) > len(predicted)


def test_a_uniform_model_needs_the_logarithm_of_its_vocabulary() -> None:
    text = "abcd" * 20
    tokenizer = CharTokenizer(text)
    model = GPT2(tokenizer.vocab_size, CONTEXT, 8, 2, 16, 1)
    torch.nn.init.zeros_(model.embeddings.token.weight)
    found = evaluate(model, tokenizer.encode(text), tokenizer)
    assert found.loss == pytest.approx(math.log(5), abs=1e-6)
    assert found.perplexity == pytest.approx(5, abs=1e-5)
    assert found.bits_per_character == pytest.approx(math.log2(5), abs=1e-6)


def test_the_perplexity_of_a_model_that_diverged_is_infinite() -> None:
    text = "abcd" * 20
    tokenizer = CharTokenizer(text)
    model = make_model(tokenizer.vocab_size)
    with torch.no_grad():
        model.embeddings.token.weight.copy_(model.embeddings.token.weight * 1e6)
    found = evaluate(model, tokenizer.encode(text), tokenizer)
    assert found.loss > 710
    assert found.perplexity == math.inf


@pytest.mark.parametrize("context", [1, 4, 17])
def test_other_contexts_are_measured_with_windows_of_that_size(context: int) -> None:
    tokenizer = CharTokenizer(NON_ASCII)
    tokens = tokenizer.encode(NON_ASCII)[:70]
    model = make_model(tokenizer.vocab_size, position="rope", window=3)
    found = evaluate(model, tokens, tokenizer, context)
    nats, _, _ = token_by_token(model, tokens, context)
    assert (found.context_size, len(found.loss_by_position), found.tokens) == (context, context, 69)
    assert found.loss == pytest.approx(sum(nats) / len(nats), abs=1e-6)


def test_learned_positions_allow_shorter_contexts_and_refuse_longer_ones() -> None:
    tokenizer = CharTokenizer(NON_ASCII)
    tokens, model = tokenizer.encode(NON_ASCII), make_model(tokenizer.vocab_size)
    assert evaluate(model, tokens, tokenizer, CONTEXT - 1).context_size == CONTEXT - 1
    with pytest.raises(InputError, match=f"context of {CONTEXT + 1} .* {CONTEXT} positions"):
        evaluate(model, tokens, tokenizer, CONTEXT + 1)


@pytest.mark.parametrize("context", [0, -1])
def test_a_context_below_one_is_refused(context: int) -> None:
    tokenizer = CharTokenizer(NON_ASCII)
    with pytest.raises(InputError, match="1 or more"):
        evaluate(make_model(tokenizer.vocab_size), tokenizer.encode(NON_ASCII), tokenizer, context)


def test_a_text_not_longer_than_the_context_is_refused() -> None:
    tokenizer = CharTokenizer(NON_ASCII)
    with pytest.raises(InputError, match=f"{CONTEXT} tokens, .* at least {CONTEXT + 1}"):
        evaluate(make_model(tokenizer.vocab_size), tokenizer.encode(NON_ASCII)[:CONTEXT], tokenizer)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_ignores_dropout_and_leaves_the_mode_as_it_was(training: bool) -> None:
    tokenizer = CharTokenizer(NON_ASCII)
    model = make_model(tokenizer.vocab_size, dropout=0.5).train(training)
    results: list[Evaluation] = [evaluate(model, tokenizer.encode(NON_ASCII), tokenizer) for _ in range(2)]
    assert results[0] == results[1]
    assert estimate_loss(model, tokenizer.encode(NON_ASCII), 3) == estimate_loss(model, tokenizer.encode(NON_ASCII), 3)
    assert model.training is training


@pytest.mark.parametrize("training", [True, False])
def test_an_error_on_the_way_leaves_the_mode_as_it_was(training: bool) -> None:
    tokenizer = CharTokenizer(NON_ASCII)
    tokens, model = tokenizer.encode(NON_ASCII), make_model(tokenizer.vocab_size).train(training)
    model.blocks[0].eval()

    def interrupt(*_: object) -> None:
        assert not any(module.training for module in model.modules())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(model, tokens, tokenizer, progress=interrupt)
    model.final_norm.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        estimate_loss(model, tokens, 1)
    assert (model.training, model.blocks[1].training, model.blocks[0].training) == (training, training, False)


def test_progress_counts_up_to_all_tokens() -> None:
    tokenizer = CharTokenizer(NON_ASCII)
    tokens, seen = np.tile(tokenizer.encode(NON_ASCII), 80), list[int]()
    evaluate(make_model(tokenizer.vocab_size), tokens, tokenizer, progress=seen.append)
    assert len(seen) > 1
    assert seen == sorted(seen)
    assert seen[-1] == len(tokens) - 1


def test_the_estimate_is_the_mean_over_random_windows_and_near_the_exact_loss() -> None:
    tokenizer = CharTokenizer(NON_ASCII)
    tokens, model = tokenizer.encode(NON_ASCII), make_model(tokenizer.vocab_size)
    data = TokenDataset(tokens, CONTEXT, tokenizer.vocab_size)
    nats = []
    for step in range(5):
        for index in StatelessSampler(len(data), 3, seed=7).batch(step):
            x, y = data[int(index)]
            nats.append(-dense_logits(model, x).log_softmax(-1).gather(-1, y[:, None]).mean().item())
    assert estimate_loss(model, tokens, num_batches=5, batch_size=3, seed=7) == pytest.approx(sum(nats) / 15, abs=1e-9)
    assert estimate_loss(model, tokens) == pytest.approx(evaluate(model, tokens, tokenizer).loss, abs=0.1)
    assert estimate_loss(model, tokens, seed=1) != estimate_loss(model, tokens, seed=2)
