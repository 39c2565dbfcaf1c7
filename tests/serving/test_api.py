"""The API as OpenAI's own client, and other programs, use it."""

from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
import torch

from gpt2lab import generate
from gpt2lab.generation.text import Decoder
from tests.model.reference import dense_logits
from tests.serving.conftest import MODELS, Serving, model_of

ON = {"ignore_eos": True}  # these models have learned nothing, and write <|endoftext|> as often as anything

pytestmark = pytest.mark.xdist_group("serving")


def written(name: str, prompt: str, tokens: int, **sampling: float) -> str:
    """What the model writes without a server."""
    model, tokenizer = model_of(name)
    ids = torch.from_numpy(tokenizer.encode(prompt))
    new = generate(model, ids[None], tokens, **sampling)[0, len(ids) :].tolist()
    decoder = Decoder(tokenizer)
    return "".join([*map(decoder.add, new), decoder.end()])


@pytest.mark.filterwarnings("ignore:the context of")
@pytest.mark.parametrize("name", [*MODELS])
def test_the_client_gets_the_text_that_python_writes_in_one_piece_and_in_many(server: Serving, name: str) -> None:
    asked = {"model": name, "prompt": "the night ", "max_tokens": 200, "temperature": 0.9, "seed": 7}
    more = {"extra_body": {"top_k": 12, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True}}
    right = written(name, "the night ", 200, temperature=0.9, seed=7, top_k=12, min_p=0.01, repetition_penalty=1.1)
    whole = server.client.completions.create(**asked, **more)
    assert whole.choices[0].text == right
    assert (whole.choices[0].finish_reason, whole.object, whole.model) == ("length", "text_completion", name)
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 200
    options = {"include_usage": True}
    pieces = [*server.client.completions.create(**asked, **more, stream=True, stream_options=options)]
    assert "".join(piece.choices[0].text for piece in pieces if piece.choices) == right
    assert [piece.choices[0].finish_reason for piece in pieces[:-1]][-1] == "length"
    assert pieces[-1].usage == whole.usage


def test_several_texts_have_the_seeds_that_follow_and_several_prompts_come_in_order(server: Serving) -> None:
    found = server.client.completions.create(
        model="letters", prompt=["ab", "the"], n=2, max_tokens=9, seed=3, extra_body=ON
    ).choices
    assert [choice.index for choice in found] == [0, 1, 2, 3]
    for choice, (prompt, seed) in zip(found, [("ab", 3), ("ab", 4), ("the", 5), ("the", 6)], strict=True):
        assert choice.text == written("letters", prompt, 9, seed=seed)


def test_a_stop_ends_a_text_and_is_not_part_of_it(server: Serving) -> None:
    whole = written("letters", "ab", 60, seed=1)
    stops = [whole[20:23], whole[12:15]]
    found = server.client.completions.create(
        model="letters", prompt="ab", max_tokens=60, seed=1, stop=stops, extra_body=ON
    ).choices[0]
    assert found.text == whole[: min(whole.index(stop) for stop in stops)]
    assert found.finish_reason == "stop"


def test_a_text_ends_with_its_document_unless_it_is_asked_to_go_on(server: Serving) -> None:
    model, tokenizer = model_of("letters")
    ids = torch.from_numpy(tokenizer.encode("ab"))
    new = generate(model, ids[None], 200, seed=1)[0, 2:].tolist()
    right = tokenizer.decode(new[: new.index(tokenizer.end_of_text)])
    for more in ({}, {"stop": "<|endoftext|>", "extra_body": ON}):
        asked = {"model": "letters", "prompt": "ab", "max_tokens": 200, "seed": 1}
        found = server.client.completions.create(**asked, **more).choices[0]
        assert (found.text, found.finish_reason) == (right, "stop")


@pytest.mark.parametrize("name", [*MODELS])
def test_logprobs_are_the_models_own_of_the_prompt_and_of_what_is_written(server: Serving, name: str) -> None:
    model, tokenizer = model_of(name)
    prompt = "the night speak"
    found = server.client.completions.create(
        model=name, prompt=prompt, max_tokens=5, seed=1, logprobs=3, echo=True, extra_body={"details": True}
    ).choices[0]
    assert found.text.startswith(prompt)
    told = found.logprobs
    details = found.model_extra["details"]
    ids = torch.tensor([detail["id"] for detail in details])
    assert ids.tolist()[:-5] == tokenizer.encode(prompt).tolist()
    assert b"".join(bytes(detail["bytes"]) for detail in details).decode(errors="replace") == found.text
    right = dense_logits(model, ids).log_softmax(-1)
    assert told.token_logprobs[0] is None
    assert told.top_logprobs[0] is None
    for place in range(1, len(ids)):
        logprob, likeliest = right[place - 1, ids[place]].item(), right[place - 1].topk(3)
        assert told.token_logprobs[place] == pytest.approx(logprob, abs=1e-4)
        assert [one["logprob"] for one in details[place]["top"]] == pytest.approx(likeliest.values.tolist(), abs=1e-4)
        assert told.token_logprobs[place] == told.top_logprobs[place][told.tokens[place]]
        assert found.text[told.text_offset[place] :].startswith(tokenizer.decode([int(ids[place])])[:1])


def test_max_tokens_may_be_zero_with_echo(server: Serving) -> None:
    found = server.client.completions.create(model="letters", prompt="abc", max_tokens=0, echo=True, logprobs=0)
    assert (found.choices[0].text, found.choices[0].finish_reason) == ("abc", "length")
    assert found.usage is not None
    assert found.usage.completion_tokens == 0
    assert [len(top) for top in found.choices[0].logprobs.top_logprobs[1:]] == [1, 1]
    with pytest.raises(openai.BadRequestError, match="max_tokens is 0"):
        server.client.completions.create(model="letters", prompt="abc", max_tokens=0)


def test_ids_are_a_prompt_and_nothing_is_what_the_model_begins_with(server: Serving) -> None:
    ids = MODELS["letters"][0].encode("the").tolist()
    by_ids = (
        server.client.completions.create(model="letters", prompt=ids, max_tokens=9, seed=1, extra_body=ON)
        .choices[0]
        .text
    )
    assert by_ids == written("letters", "the", 9, seed=1)
    by_nothing = server.ask(model="letters", max_tokens=9, seed=1, **ON).json()["choices"][0]["text"]
    assert by_nothing == written("letters", "\n", 9, seed=1)


def test_a_hundred_seeded_texts_at_once_are_those_that_are_written_alone(server: Serving) -> None:
    """Beside each other and in any order; the engine's own tests say the same of every switch."""

    def ask(seed: int) -> str:
        for _ in range(1000):  # more than may wait are told to come again
            try:
                made = server.client.completions.create(
                    model="letters", prompt="th", max_tokens=30 + seed, seed=seed, extra_body=ON
                )
                return made.choices[0].text
            except openai.RateLimitError:
                continue
        raise AssertionError

    with ThreadPoolExecutor(32) as pool:
        found = [*pool.map(ask, range(100))]
    right = [written("letters", "th", 30 + seed, seed=seed) for seed in range(100)]
    assert sum(ours == theirs for ours, theirs in zip(found, right, strict=True)) >= 99


def test_the_models_are_listed(server: Serving) -> None:
    assert [model.id for model in server.client.models.list()] == ["letters", "words"]


def test_errors_have_the_apis_shape(server: Serving) -> None:
    with pytest.raises(openai.NotFoundError, match="there is no model 'gpt-4'; there is letters, words") as wrong:
        server.client.completions.create(model="gpt-4", prompt="a")
    assert wrong.value.body == {
        "message": "there is no model 'gpt-4'; there is letters, words",
        "type": "not_found_error",
        "param": "model",
        "code": "model_not_found",
    }
    for field, value, message in [
        ("prompt", "ABC", "the tokenizer"),
        ("prompt", [999], "prompt has the id 999, but the model knows 0 to"),
        ("prompt", [], "prompt is an empty list"),
        ("prompt", {"a": 1}, "prompt has to be a text, ids, or a list"),
        ("prompt", "a" * 9000, "prompt has 9,000 tokens, and 8,192 are allowed"),
        ("temperature", -1, "temperature: Input should be greater than or equal to 0"),
        ("top_p", 0, "top_p: Input should be greater than 0"),
        ("max_tokens", 5000, "max_tokens is 5000; it has to be 2,048 or less"),
        ("n", 99, "n is 99; it has to be 16 or less"),
        ("best_of", 3, "best_of is not known here"),
        ("frequency_penalty", 0.5, "frequency_penalty is not known here"),
        ("stop", [""], "none of them empty"),
        ("top_k", 10**30, "top_k"),
        ("prompt", [1.5] * 200_000, "prompt has to be a text, ids, or a list"),
        ("prompt", [""] * 100_000, "these are 100,000 texts; up to 64 go into a request"),
        ("frobnicate", 1, "frobnicate is not known here"),
    ]:
        answer = server.ask(**{"model": "letters", "prompt": "a", field: value})
        told = answer.json()["error"]
        assert (answer.status_code, told["type"], told["param"]) == (400, "invalid_request_error", field)
        assert message in told["message"]
    assert (
        "Content-Type: application/json"
        in httpx.post(f"{server.base}v1/completions", content=b"{}").json()["error"]["message"]
    )
    assert "/v1/completions" in server.ask("v1/chat/completions").json()["error"]["message"]
    headers = {"content-type": "application/json"}
    broken = httpx.post(f"{server.base}v1/completions", content=b'{"model": ', headers=headers)
    assert (broken.status_code, "not JSON" in broken.json()["error"]["message"]) == (400, True)
    assert (missing := server.get("v1/nothing")).status_code == 404
    assert missing.json()["error"]["type"] == "not_found_error"


def test_health_metrics_and_the_schema(server: Serving) -> None:
    server.ask(model="letters", prompt="a", max_tokens=3)
    assert server.get("health").json() == {"status": "ok", "waiting": 0, "running": 0}
    metrics = dict(
        line.rsplit(" ", 1) for line in server.get("metrics").text.splitlines() if line and not line.startswith("#")
    )
    assert float(metrics['gpt2lab_tokens_total{model="letters"}']) >= 3
    assert float(metrics['gpt2lab_answers_total{status="200"}']) >= 1
    assert float(metrics["gpt2lab_first_token_seconds_count"]) >= 1
    assert float(metrics["process_open_fds"]) > 0
    schema = server.get("openapi.json").json()
    fields = schema["components"]["schemas"]["CompletionRequest"]["properties"]
    assert {"temperature", "top_k", "min_p", "repetition_penalty", "logprobs", "echo"} <= fields.keys()


def test_attention_is_told_for_a_token(server: Serving) -> None:
    layers = server.ask("attention", model="letters", ids=[1, 2, 3, 4, 5, 6, 7]).json()["layers"]
    assert [[len(row) for row in layer["weights"]] for layer in layers] == [[5] * 4] * 2
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for layer in layers for row in layer["weights"])
    assert server.ask("attention", model="words", ids=[1] * 33).json()["error"]["param"] == "ids"


def test_an_answer_tells_so_much_and_not_more(server: Serving) -> None:
    answer = server.ask(model="letters", prompt="a", max_tokens=2048, n=5, logprobs=20)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "max_tokens")
    assert "this asks for 215,040 tokens" in answer.json()["error"]["message"]


@pytest.mark.parametrize("ids", [[11, 150], [11, 151, 12]])
def test_a_character_that_the_prompt_begins_is_told_once(server: Serving, ids: list[int]) -> None:
    """Text, bytes and offsets agree, also where ids are parts of characters."""
    for seed in range(20):
        asked = {"model": "words", "prompt": ids, "seed": seed, "logprobs": 1, "echo": True, "details": True, **ON}
        for tokens in (0, 9):
            (found,) = server.ask(**asked, max_tokens=tokens).json()["choices"]
            spelled = b"".join(bytes(detail["bytes"]) for detail in found["details"])
            assert found["text"] == spelled.decode(errors="replace")
            offsets = found["logprobs"]["text_offset"]
            assert offsets == sorted(offsets)
            assert offsets[-1] <= len(found["text"])
