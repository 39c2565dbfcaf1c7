"""Models written for other engines: read there by the engine itself, and read back here."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

import gpt2lab
from gpt2lab import GPT2, CharTokenizer, InputError
from gpt2lab.data.tokenizers import BPETokenizer, Tokenizer
from gpt2lab.interchange.weights import never_written
from tests.cli.conftest import Command, assert_one_sentence
from tests.interchange.made import drawn, logits_of, random_text
from tests.model.reference import ALiBi

LETTERS = CharTokenizer("abcdefghijklmnopqrstuvw")  # with <|endoftext|> 24 ids
SCRIPTS = CharTokenizer("abc \n\tÄé中文👨‍€")  # characters of one to four bytes
BPE = BPETokenizer.train(["the king and the queen, and the night of Zoë's 中文 " * 9], 300)


def model_with(vocab_size: int = 24, width: int = 24, **switches: Any) -> GPT2:
    return drawn(GPT2(vocab_size, 32, width, 4, 40, 2, **switches))


def same(a: GPT2, b: GPT2) -> bool:
    """Whether two models are the same, bit for bit."""
    ours, theirs = a.weights(), b.weights()
    return a.config == b.config and ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


def greedy(model: GPT2, prompt: list[int], tokens: int) -> list[int]:
    ids: Tensor = gpt2lab.generate(model, torch.tensor([prompt]), tokens, step="eager", temperature=0)
    return [int(id_) for id_ in ids[0, len(prompt) :]]


# Transformers


@st.composite
def expressible(draw: st.DrawFn) -> dict[str, Any]:
    """Switches that a class of Transformers has."""
    switches = {
        "num_kv_heads": draw(st.sampled_from([None, 1, 2, 4])),
        "tie_embeddings": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "activation": draw(st.sampled_from(["gelu_tanh", "gelu", "relu"])),
        "layer_norm_epsilon": draw(st.sampled_from([1e-5, 0.1])),
        "dropout": draw(st.sampled_from([0.0, 0.1])),
    }
    if draw(st.booleans()):
        window = draw(st.sampled_from([None, 2, 5, (5, 5), 31, 40]))
        return switches | {"position": "rope", "rope_theta": draw(st.sampled_from([10_000.0, 77.0])), "window": window}
    return switches | {
        "position": draw(st.sampled_from(["learned", "none"])),
        "window": draw(st.sampled_from([None, 32])),
    }


@settings(max_examples=25)
@given(switches=expressible())
def test_what_transformers_reads_is_the_model_and_what_comes_back_is_it_bit_for_bit(
    switches: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    model, folder = model_with(**switches), tmp_path_factory.mktemp("export") / "hf"
    exported = gpt2lab.export(model, "hf", folder, tokenizer=LETTERS)
    theirs = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(theirs).__name__ == exported.kind
    ids = random_text(24, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(ids), logits_of(theirs, ids), rtol=0, atol=1e-5)
    assert exported.agreement.difference < 1e-4
    assert same(gpt2lab.from_pretrained(folder), model)


def test_a_model_that_was_trained_further_elsewhere_is_read_as_what_it_became(tmp_path: Path) -> None:
    """What was spelled out for the other engine is not zero or repeated any more."""
    model = model_with(num_kv_heads=2, bias=False, position="none")
    gpt2lab.export(model, "hf", tmp_path / "hf", tokenizer=LETTERS)
    theirs = drawn(AutoModelForCausalLM.from_pretrained(tmp_path / "hf"))
    theirs.save_pretrained(tmp_path / "hf")
    back = gpt2lab.from_pretrained(tmp_path / "hf")
    assert (back.config.bias, back.config.position, back.config.kv_heads) == (True, "learned", 4)
    ids = random_text(24, 32)
    with torch.no_grad():
        torch.testing.assert_close(back(ids), logits_of(theirs, ids), rtol=0, atol=1e-5)


@pytest.mark.parametrize("tokenizer", [LETTERS, SCRIPTS, BPE], ids=["letters", "scripts", "bpe"])
def test_the_tokenizer_comes_along_exactly(tokenizer: Tokenizer, tmp_path: Path) -> None:
    gpt2lab.export(model_with(tokenizer.vocab_size), "hf", tmp_path / "hf", tokenizer=tokenizer)
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hf")
    drawn_ids = torch.randint(tokenizer.vocab_size - 1, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    text = tokenizer.decode(drawn_ids).replace("\ufffd", "")
    ids = tokenizer.encode(text).tolist()
    assert theirs(text, add_special_tokens=False)["input_ids"] == ids
    assert theirs.decode(ids) == text
    assert (theirs.eos_token_id, len(theirs)) == (tokenizer.end_of_text, tokenizer.vocab_size)


def test_a_pipeline_writes_on_beyond_the_window_what_we_write(tmp_path: Path) -> None:
    model = model_with(position="rope", window=5)
    gpt2lab.export(model, "hf", tmp_path / "hf", tokenizer=LETTERS)
    write = pipeline("text-generation", str(tmp_path / "hf"))
    ours = greedy(model, LETTERS.encode("abcd").tolist(), 30)
    (found,) = write("abcd", max_new_tokens=30, do_sample=False, return_full_text=False)
    end = [*ours, LETTERS.end_of_text].index(LETTERS.end_of_text)  # where theirs stops
    assert found["generated_text"] == LETTERS.decode(ours[:end])


@pytest.mark.parametrize(
    "switches", [{}, {"bias": False}, {"tie_embeddings": False}, {"position": "rope", "window": 6}]
)
def test_an_end_of_text_that_a_model_lacks_is_added_never_written_and_left_out_again(
    switches: dict[str, Any], tmp_path: Path
) -> None:
    model = model_with(23, **switches)
    gpt2lab.export(model, "hf", tmp_path / "hf", tokenizer=LETTERS)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf").eval()
    assert theirs.config.vocab_size == 24
    written = theirs.generate(random_text(23, 1, 64), do_sample=True, temperature=5.0, max_new_tokens=30)
    assert written.max() < 23
    assert same(gpt2lab.from_pretrained(tmp_path / "hf"), model)
    if switches.get("bias", True):
        assert logits_of(theirs, random_text(23, 32))[..., 23].max() < -90


def test_a_row_that_is_never_written_has_the_same_logit_whatever_was_read() -> None:
    model = model_with()
    hidden = model.hidden(random_text(24, 32))
    logits = hidden @ never_written(model.weights())[0]
    torch.testing.assert_close(logits, torch.full((2, 32), -100.0), rtol=1e-3, atol=0)


def test_a_model_without_a_tokenizer_goes_out_as_it_is(tmp_path: Path) -> None:
    model = model_with(23)
    model.save(tmp_path / "model")
    gpt2lab.export(tmp_path / "model", "hf", tmp_path / "hf")
    assert not (tmp_path / "hf" / "tokenizer.json").exists()
    assert same(gpt2lab.from_pretrained(tmp_path / "hf"), model)
    with pytest.raises(InputError, match="holds its tokenizer, and this model has none"):
        gpt2lab.export(tmp_path / "model", "gguf", tmp_path / "x.gguf")


REFUSED = [
    ({"window": 5}, r'position="learned" with a window \(5\), only position="rope" has one; --format onnx'),
    ({"position": "none", "window": 5}, r'position="none" with a window'),
    ({"position": "rope", "window": (5, None)}, "windows that differ by layer; --format onnx"),
    ({"position": ("rope", "none")}, "positions that differ by layer"),
    ({"position": "rope", "rope_fraction": 1 / 3}, r"a rope_fraction of 0\.333333; --format onnx"),
    ({"qk_norm": True}, r"normalised queries and keys \(qk_norm\)"),
    ({"sinks": True}, "sinks"),
    ({"attention": ALiBi}, "the attention ALiBi, which is your own"),
]


@pytest.mark.parametrize("format", ["hf", "gguf"])
@pytest.mark.parametrize(("switches", "reason"), REFUSED, ids=[str(next(iter(switches))) for switches, _ in REFUSED])
def test_what_no_class_can_express_is_refused_and_leaves_nothing(
    switches: dict[str, Any], reason: str, format: Any, tmp_path: Path
) -> None:
    if format == "gguf" and "window" in switches:
        reason = r"llama\.cpp ignores windows in these classes \(5 tokens here\).*--cap-context"
    with pytest.raises(InputError, match=reason):
        gpt2lab.export(model_with(**switches), format, tmp_path / "out", tokenizer=LETTERS)
    assert [*tmp_path.iterdir()] == []


def test_what_computes_something_else_is_never_left_behind(tmp_path: Path) -> None:
    model = model_with()
    with torch.no_grad():
        model.final_norm.bias[0] = torch.nan
    with pytest.raises(InputError, match="the model's own logits are not finite numbers"):
        gpt2lab.export(model, "hf", tmp_path / "hf", tokenizer=LETTERS)
    assert [*tmp_path.iterdir()] == []


def test_a_window_of_one_token_is_not_left_to_a_cache_that_takes_it_for_none(tmp_path: Path) -> None:
    """Transformers 5.23 keeps all keys where it should keep none beside the new one; its logits at once are right."""
    model = model_with(position="rope", window=1, tie_embeddings=False, bias=False)
    with pytest.raises(InputError, match=r"computes something else: .* its greedy text falls behind ours by \d"):
        gpt2lab.export(model, "hf", tmp_path / "hf", tokenizer=LETTERS)
    assert [*tmp_path.iterdir()] == []


def test_options_that_do_not_go_together_are_told(tmp_path: Path) -> None:
    model = model_with()
    with pytest.raises(InputError, match="--dtype is an option of --format gguf"):
        gpt2lab.export(model, "hf", tmp_path / "x", dtype="f16")
    with pytest.raises(InputError, match="--cap-context is an option of --format gguf"):
        gpt2lab.export(model, "hf", tmp_path / "x", cap_context=True)
    with pytest.raises(InputError, match="the tokenizer has 24 ids, and the model 30"):
        gpt2lab.export(model_with(30), "hf", tmp_path / "x", tokenizer=LETTERS)
    (tmp_path / "there").write_text("x", encoding="utf-8")
    with pytest.raises(InputError, match="there is a file; choose another --out"):
        gpt2lab.export(model, "hf", tmp_path / "there", tokenizer=LETTERS)
    with pytest.raises(InputError, match="there is there already"):
        gpt2lab.export(model, "gguf", tmp_path / "there", tokenizer=LETTERS)


def test_a_run_is_exported_with_a_card_that_tells_its_loss(modern: Path, command: Command, tmp_path: Path) -> None:
    done = command("export", modern, "--out", tmp_path / "hf")
    assert (done.code, done.err) == (0, "")
    assert "Starcoder2ForCausalLM" in done.out
    assert "tokens of its greedy text are ours" in done.out
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    found = gpt2lab.evaluate(modern, split="test", contexts=())
    assert f"| {found.loss:.4f} |" in card
    assert "Switches: `position=rope`, `num_kv_heads=2`, `window=4`." in card
    again = command("export", modern, "--out", tmp_path / "hf")
    assert_one_sentence(again, "holds something already", "--force")
    assert same(gpt2lab.from_pretrained(tmp_path / "hf"), gpt2lab.load(modern)[0])
    back = command("import", tmp_path / "hf", "--out", tmp_path / "back")
    assert back.code == 0
    assert same(gpt2lab.load(tmp_path / "back")[0], gpt2lab.load(modern)[0])
    assert gpt2lab.load(tmp_path / "back")[1].fingerprint() == gpt2lab.load(modern)[1].fingerprint()


def test_a_card_of_gpt2_itself_names_no_switch(tmp_path: Path) -> None:
    """As many key/value heads as query heads are none, however they were asked for."""
    gpt2lab.export(model_with(num_kv_heads=4), "hf", tmp_path / "hf", tokenizer=LETTERS)
    card = (tmp_path / "hf" / "README.md").read_text(encoding="utf-8")
    assert "Switches: none: it is the original GPT-2." in card


# llama.cpp


def llama_cpp(path: Path, ids: list[int], tokens: int, context: int = 0) -> dict[str, Any]:
    """What llama.cpp answers, in a process of its own: it ends the whole process where it cannot go on."""
    script = """
import json, sys, xllamacpp
path, ids, tokens, context = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
params = xllamacpp.CommonParams()
params.model.path, params.verbosity, params.n_parallel, params.cpuparams.n_threads = path, -1, 1, 1
if context:
    params.n_ctx = context
asked = {"prompt": ids, "n_predict": tokens, "temperature": 0, "n_probs": 1, "cache_prompt": False}
print(json.dumps(xllamacpp.Server(params).handle_completions(asked)))
"""
    arguments = [str(path), json.dumps(ids), str(tokens), str(context)]
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


@pytest.mark.parametrize(
    ("switches", "tokenizer"),
    [
        ({}, LETTERS),
        ({"num_kv_heads": 2, "bias": False}, SCRIPTS),
        ({"num_kv_heads": 1, "position": "none"}, LETTERS),
        ({"position": "rope", "num_kv_heads": 2, "rope_theta": 77.0}, BPE),
        ({"position": "rope", "window": 100, "tie_embeddings": False}, SCRIPTS),
    ],
)
@pytest.mark.parametrize("dtype", ["f32", "q8_0"])
def test_llama_cpp_writes_what_we_write(
    switches: dict[str, Any], tokenizer: Tokenizer, dtype: Any, tmp_path: Path
) -> None:
    model, path = model_with(tokenizer.vocab_size, width=32, **switches), tmp_path / "model.gguf"
    exported = gpt2lab.export(model, "gguf", path, tokenizer=tokenizer, dtype=dtype)
    assert exported.agreement.difference < (0.02 if dtype == "f32" else 0.3)
    assert exported.agreement.tokens == 28
    if dtype == "f32":
        prompt = tokenizer.encode("cab").tolist()
        theirs = llama_cpp(path, prompt, 20)["choices"][0]["text"]
        ours = greedy(model, prompt, 20)
        end = [*ours, tokenizer.end_of_text].index(tokenizer.end_of_text)  # where it stops
        text = tokenizer.decode(ours[:end])
        assert theirs.partition("\ufffd")[0] == text.partition("\ufffd")[0]  # up to bytes that are no text
        assert theirs


def test_half_precision_and_eight_bits_make_a_smaller_file(tmp_path: Path) -> None:
    model = model_with(width=64)
    for dtype in ("f32", "f16", "q8_0"):
        gpt2lab.export(model, "gguf", tmp_path / dtype, tokenizer=LETTERS, dtype=dtype)  # type: ignore[arg-type]
    f32, f16, q8_0 = ((tmp_path / dtype).stat().st_size for dtype in ("f32", "f16", "q8_0"))
    assert f32 > 1.4 * f16 > 1.4 * 1.2 * q8_0


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_a_context_of_one_window_holds_in_llama_cpp(position: Any, tmp_path: Path) -> None:
    model, path = model_with(position=position, window=9), tmp_path / "model.gguf"
    exported = gpt2lab.export(model, "gguf", path, tokenizer=LETTERS, cap_context=True)
    assert exported.agreement.tokens == 9 - 4
    answer = llama_cpp(path, [1, 2, 3, 4], 30, context=512)  # more than it has
    theirs = [one["id"] for one in answer["choices"][0]["logprobs"]["content"]]
    assert len(theirs) <= 9 - 4 + 1  # it ends there, or earlier at <|endoftext|>
    assert theirs == greedy(model, [1, 2, 3, 4], len(theirs))
    assert "choices" not in llama_cpp(path, [1] * 10, 1, context=512)  # refused


def test_llama_cpps_file_names_its_end_of_text(tmp_path: Path) -> None:
    import gguf

    padded = BPE.padded(BPE.vocab_size + 2)
    gpt2lab.export(model_with(padded.vocab_size), "gguf", tmp_path / "x.gguf", tokenizer=padded)
    fields = gguf.GGUFReader(tmp_path / "x.gguf").fields
    names, end = fields["tokenizer.ggml.tokens"].contents(), fields["tokenizer.ggml.eos_token_id"].contents()
    assert (end, names[end]) == (padded.end_of_text, "<|endoftext|>")
    assert names[-1] == f"<|unused {padded.vocab_size - 1}|>"


def test_a_model_in_half_precision_or_with_a_context_of_one_token_goes_out_too(tmp_path: Path) -> None:
    gpt2lab.export(model_with().bfloat16(), "hf", tmp_path / "half", tokenizer=LETTERS)
    gpt2lab.export(drawn(GPT2(24, 1, 24, 4, 40, 2)), "hf", tmp_path / "one", tokenizer=LETTERS)
    assert gpt2lab.from_pretrained(tmp_path / "one").config.max_seq_len == 1


def test_an_activation_that_llama_cpp_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"llama\.cpp has no relu in these classes, only gelu_tanh"):
        gpt2lab.export(model_with(activation="relu"), "gguf", tmp_path / "x.gguf", tokenizer=LETTERS)


# ONNX


@pytest.mark.slow
@pytest.mark.parametrize(
    "switches",
    [
        {"num_kv_heads": 2, "window": 5},
        {"position": ("rope", "none"), "qk_norm": True, "sinks": True, "rope_fraction": 1 / 3, "window": (6, 7)},
        {"attention": ALiBi, "position": "none", "bias": False},
    ],
    ids=["window", "everything", "own"],
)
def test_onnx_runtime_writes_what_we_write(switches: dict[str, Any], tmp_path: Path) -> None:
    import onnxruntime

    model = model_with(**switches)
    exported = gpt2lab.export(model, "onnx", tmp_path / "onnx", tokenizer=LETTERS)
    assert exported.agreement.difference < 1e-4
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    past = {i.name: torch.zeros(2, i.shape[1], 0, i.shape[3]).numpy() for i in session.get_inputs()[2:]}
    ids = random_text(24, 12)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0  # padding on the left
    logits = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), **past})[0]
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits[0]), model(ids[:1])[0], rtol=0, atol=1e-5)
        torch.testing.assert_close(torch.from_numpy(logits[1, 4:]), model(ids[1:, 4:])[0], rtol=0, atol=1e-5)


# The field's own tools


@pytest.mark.slow
def test_peft_trains_a_low_rank_adapter_on_an_exported_folder(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    gpt2lab.export(model_with(position="rope", window=5), "hf", tmp_path / "hf", tokenizer=LETTERS)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    adapted = get_peft_model(theirs, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"))
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.05)
    ids = random_text(24, 32)
    losses = []
    for _ in range(20):
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    adapted.merge_and_unload().save_pretrained(tmp_path / "merged")
    merged = gpt2lab.from_pretrained(tmp_path / "merged")
    with torch.no_grad():
        torch.testing.assert_close(merged(ids), logits_of(adapted.eval(), ids), rtol=0, atol=1e-4)
