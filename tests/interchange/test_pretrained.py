"""Models of other programs, read by from_pretrained and ``gpt2lab import``: what they compute stays what it was."""

import json
import pickle
import threading
import warnings
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

import gpt2lab
from gpt2lab import GPT2, CharTokenizer, InputError
from gpt2lab.data.tokenizers import BPETokenizer
from tests.cli.conftest import Command, assert_one_sentence, program
from tests.interchange.made import (
    CONTEXT,
    NO_DROPOUT,
    C,
    H,
    V,
    as_nanogpt,
    bigcode,
    drawn,
    gpt2,
    logits_of,
    random_text,
    save_weights,
    starcoder2,
)

MAKERS: dict[str, Callable[..., PreTrainedModel]] = {"gpt2": gpt2, "gpt_bigcode": bigcode, "starcoder2": starcoder2}


def read(folder: Path, **options: Any) -> GPT2:
    """The model of a folder; a warning would be an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return gpt2lab.from_pretrained(folder, **options)


def assert_same_logits(ours: GPT2, theirs: PreTrainedModel, tolerance: float = 1e-5) -> None:
    ids = random_text(ours.config.vocab_size, ours.config.max_seq_len)
    expected = logits_of(theirs, ids)
    assert expected.std() > 0.3, "logits that hardly differ would show nothing"
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), expected, rtol=0, atol=tolerance)


@st.composite
def shapes(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A class and odd sizes and settings for it."""
    kind = draw(st.sampled_from(sorted(MAKERS)))
    heads, width = draw(st.integers(1, 5)), 2 * draw(st.integers(1, 5))
    tied, layers = draw(st.booleans()), draw(st.integers(1, 3))
    activation = draw(st.sampled_from(["gelu_new", "gelu_pytorch_tanh", "gelu", "relu"]))
    context, vocab_size, hidden = draw(st.integers(1, 20)), draw(st.integers(2, 40)), draw(st.integers(1, 50))
    if kind == "starcoder2":
        groups = [k for k in range(1, heads + 1) if heads % k == 0]
        return kind, {
            "vocab_size": vocab_size, "max_position_embeddings": context, "hidden_size": heads * width,
            "num_hidden_layers": layers, "num_attention_heads": heads, "intermediate_size": hidden,
            "num_key_value_heads": draw(st.sampled_from(groups)), "hidden_act": activation,
            "tie_word_embeddings": tied, "use_bias": draw(st.booleans()),
            "norm_epsilon": draw(st.sampled_from([1e-5, 0.1])),
            "sliding_window": draw(st.sampled_from([None, 1, 3, 100])),
            "rope_parameters": {"rope_type": "default", "rope_theta": draw(st.sampled_from([10_000.0, 77.0]))},
        }  # fmt: skip
    sizes = {
        "vocab_size": vocab_size, "n_positions": context, "n_embd": heads * width, "n_layer": layers, "n_head": heads,
        "n_inner": draw(st.sampled_from([None, hidden])), "activation_function": activation,
        "tie_word_embeddings": tied, "layer_norm_epsilon": draw(st.sampled_from([1e-5, 0.1])),
        "scale_attn_weights": draw(st.booleans()),
    }  # fmt: skip
    if kind == "gpt_bigcode":
        return kind, sizes | {"multi_query": draw(st.booleans())}
    return kind, sizes | {"scale_attn_by_inverse_layer_idx": draw(st.booleans())}


@settings(max_examples=40)
@given(shape=shapes(), double=st.booleans())
def test_a_folder_of_transformers_computes_the_same_here(
    shape: tuple[str, dict[str, Any]], double: bool, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind, options = shape
    theirs = drawn(MAKERS[kind](**options), torch.float64 if double else torch.float32)
    folder = tmp_path_factory.mktemp("theirs")
    theirs.save_pretrained(folder)
    ours = read(folder)
    ids = random_text(ours.config.vocab_size, ours.config.max_seq_len)
    assert ours.dtype == theirs.dtype
    with torch.no_grad():
        exact = double and kind != "starcoder2"  # whose rotary tables are float32 in every precision
        torch.testing.assert_close(ours(ids), logits_of(theirs, ids), rtol=0, atol=1e-10 if exact else 1e-5)


def test_weights_in_half_precision_are_read_as_float32(tmp_path: Path) -> None:
    theirs = drawn(gpt2(), torch.bfloat16)
    theirs.save_pretrained(tmp_path)
    assert_same_logits(read(tmp_path), theirs.float())


def test_a_folder_of_several_files_is_read_whole(tmp_path: Path) -> None:
    theirs = drawn(starcoder2())
    theirs.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len([*tmp_path.glob("*.safetensors")]) > 1
    assert_same_logits(read(tmp_path), theirs)


def test_the_names_and_masks_of_the_hubs_oldest_files_are_understood(tmp_path: Path) -> None:
    """The hub's gpt2 has no prefix before its names, and the mask of each layer beside the weights."""
    theirs = drawn(gpt2())
    theirs.save_pretrained(tmp_path)
    bare = {n.removeprefix("transformer."): t for n, t in theirs.state_dict().items() if n != "lm_head.weight"}
    mask = torch.ones(CONTEXT, CONTEXT).tril()[None, None]
    save_weights(bare | {f"h.{layer}.attn.bias": mask for layer in range(2)}, tmp_path / "model.safetensors")
    assert_same_logits(read(tmp_path), theirs)
    torch.save(bare, tmp_path / "pytorch_model.bin")
    (tmp_path / "model.safetensors").unlink()
    assert_same_logits(read(tmp_path), theirs)


def test_a_loaded_model_owns_its_memory(tmp_path: Path) -> None:
    theirs = drawn(starcoder2())
    theirs.save_pretrained(tmp_path)
    ours = read(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * (tmp_path / "model.safetensors").stat().st_size)
    assert {tensor.data_ptr() % 64 for tensor in ours.parameters()} == {0}
    assert_same_logits(ours, theirs)


def test_dropout_comes_along_and_what_has_no_place_is_named(tmp_path: Path) -> None:
    drawn(gpt2(resid_pdrop=0.2, embd_pdrop=0.2, attn_pdrop=0.3)).save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=r"dropout is its resid_pdrop, 0.2; there is no place for attn_pdrop 0.3"):
        model = gpt2lab.from_pretrained(tmp_path)
    assert model.config.dropout == 0.2
    assert not model.training


# nanoGPT and minGPT


@pytest.mark.parametrize("biases", [True, False])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_a_checkpoint_of_nanogpt_is_gpt2_with_the_exact_gelu(tmp_path: Path, biases: bool, prefix: str) -> None:
    theirs = drawn(gpt2(activation_function="gelu"))
    if not biases:
        for name, parameter in theirs.named_parameters():
            parameter.data.mul_(not name.endswith(".bias"))
    about = {
        "n_layer": 2,
        "n_head": H,
        "n_embd": C,
        "block_size": CONTEXT,
        "bias": biases,
        "vocab_size": V,
        "dropout": 0.2,
    }
    weights = {prefix + name: tensor for name, tensor in as_nanogpt(theirs, biases).items()}
    state = {"model": weights, "optimizer": {"state": {}}, "model_args": about, "iter_num": 5, "best_val_loss": 1.5}
    torch.save(state, tmp_path / "ckpt.pt")
    with pytest.warns(UserWarning, match="read as a model of nanoGPT, with the activation gelu;"):
        ours = gpt2lab.from_pretrained(tmp_path / "ckpt.pt")
    assert_same_logits(ours, theirs)
    assert (ours.config.bias, ours.config.dropout, ours.config.tie_embeddings) == (biases, 0.2, True)
    assert_same_logits(read(tmp_path, activation="gelu"), theirs)  # the folder


def test_weights_of_nanogpt_alone_need_the_number_of_heads(tmp_path: Path) -> None:
    theirs = drawn(gpt2(activation_function="gelu"))
    path = save_weights(as_nanogpt(theirs), tmp_path / "nano.safetensors")
    with pytest.raises(InputError, match=r"does not say how many heads the model has; add --num-heads"):
        read(path)
    assert_same_logits(read(path, num_heads=H, activation="gelu"), theirs)
    said = save_weights(as_nanogpt(theirs), tmp_path / "said.safetensors", n_head=str(H))
    assert_same_logits(read(said, activation="gelu"), theirs)


def test_weights_of_mingpt_are_gpt2_untied(tmp_path: Path) -> None:
    theirs = drawn(gpt2(tie_word_embeddings=False))
    mask = {f"transformer.h.{layer}.attn.bias": torch.ones(1, 1, CONTEXT, CONTEXT).tril() for layer in range(2)}
    torch.save(as_nanogpt(theirs) | mask, tmp_path / "model.pt")
    (tmp_path / "config.json").write_text(
        json.dumps({"system": {"seed": 1}, "model": {"model_type": None, "n_head": H}})
    )
    with pytest.warns(UserWarning, match="read as a model of minGPT, with the activation gelu_tanh;"):
        assert_same_logits(gpt2lab.from_pretrained(tmp_path), theirs)


@pytest.fixture(scope="module")
def letters() -> BPETokenizer:
    return BPETokenizer.train(["the king and the queen and the night " * 9], 300)


def save_gpt2(folder: Path, vocab_size: int) -> PreTrainedModel:
    theirs = drawn(gpt2(vocab_size=vocab_size))
    theirs.save_pretrained(folder)
    return theirs


# The hub


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face hub as downloading a model asks for."""

    folder: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        files = [path.name for path in self.folder.iterdir()]
        name = self.path.rpartition("/")[2]
        if self.path.startswith("/api/models/someone/tiny/tree/"):
            about = {"type": "file", "oid": "0" * 40}
            sizes = {path.name: path.stat().st_size for path in self.folder.iterdir()}
            content = json.dumps([{**about, "path": file, "size": size} for file, size in sizes.items()]).encode()
        elif self.path.startswith("/api/models/someone/tiny"):
            about = {"_id": "1", "id": "someone/tiny", "sha": "0" * 40, "private": False, "downloads": 0, "likes": 0}
            content = json.dumps({**about, "tags": [], "siblings": [{"rfilename": file} for file in files]}).encode()
        elif self.path.startswith("/someone/tiny/resolve/") and name in files:
            content = (self.folder / name).read_bytes()
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("ETag", f'"{name}"')
        self.send_header("X-Repo-Commit", "0" * 40)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(tmp_path: Path, letters: BPETokenizer) -> Iterator[str]:
    """Address of a hub that has one model, someone/tiny."""
    save_gpt2(tmp_path / "hub", letters.vocab_size)
    letters.save(tmp_path / "hub" / "tokenizer.json")
    Hub.folder = tmp_path / "hub"
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_model_of_the_hub_is_downloaded_once(tmp_path: Path, hub: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    done = program("import", "someone/tiny", "--out", tmp_path / "run")
    assert done.code == 0, done.err
    assert "Fetching" in done.err  # progress
    done = program("import", "someone/else", "--out", tmp_path / "other")
    assert_one_sentence(done, "no folder someone/else here", "the hub has no model of that name")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nobody is there
    done = program("import", "someone/tiny", "--out", tmp_path / "again")
    assert done.code == 0, done.err
    first, again = (gpt2lab.load(tmp_path / name)[0].weights() for name in ("run", "again"))
    assert all(torch.equal(first[name], again[name]) for name in first)
    done = program("import", "someone/other", "--out", tmp_path / "other")
    assert_one_sentence(done, "the Hugging Face hub cannot be reached", "give the path of a folder")
    assert not (tmp_path / "other").exists()


# Tokenizers, and the command


def test_what_was_imported_is_a_run_like_others(
    tmp_path: Path, command: Command, letters: BPETokenizer, rhyme_file: Path
) -> None:
    source, run = tmp_path / "theirs", tmp_path / "run"
    theirs = save_gpt2(source, letters.vocab_size + 3)  # padded, as vocabularies are
    letters.save(source / "tokenizer.json")
    done = command("import", source, "--out", run)
    assert (done.code, done.err) == (0, "")
    assert f"{theirs.num_parameters():,} parameters" in done.out
    model, tokenizer = gpt2lab.load(run)
    assert_same_logits(model, theirs)
    assert tokenizer.encode("the queen").tolist() == letters.encode("the queen").tolist()
    assert (tokenizer.vocab_size, tokenizer.end_of_text) == (letters.vocab_size + 3, letters.end_of_text)
    assert tokenizer.decode([*tokenizer.encode("the"), tokenizer.vocab_size - 1]) == "the"
    assert tokenizer.encode(f"<|unused {letters.vocab_size}|>").max() < letters.vocab_size
    assert command("generate", run, "--prompt", "the", "--tokens", "40", "--temperature", "5").code == 0
    measured = command("evaluate", run, "--text", rhyme_file, "--json")
    assert json.loads(measured.out)[str(run)]["parameters"] == theirs.num_parameters()
    tuned = ["--init-from", run, "--text", rhyme_file, "--max-steps", "3", "--batch-size", "2"]
    assert command("train", *tuned, "--out", tmp_path / "tuned").code == 0
    assert gpt2lab.load(tmp_path / "tuned")[0].config == model.config
    again = command("import", source, "--out", run)
    assert_one_sentence(again, f"{run} holds something already", "--force")
    assert command("import", source, "--out", run, "--force").code == 0


def test_the_two_files_of_gpt2s_tokenizer_are_read(tmp_path: Path, letters: BPETokenizer) -> None:
    source = tmp_path / "theirs"
    save_gpt2(source, letters.vocab_size)
    model = json.loads(letters.to_json())["model"]
    vocabulary = {**model["vocab"], "<|endoftext|>": letters.end_of_text}
    (source / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (source / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    gpt2lab.import_model(source, tmp_path / "run")
    _, tokenizer = gpt2lab.load(tmp_path / "run")
    assert tokenizer.encode("the queen").tolist() == letters.encode("the queen").tolist()


def test_a_tokenizer_that_does_not_fit_or_is_not_there_is_told(tmp_path: Path, letters: BPETokenizer) -> None:
    source = tmp_path / "theirs"
    save_gpt2(source, 70)
    with pytest.raises(InputError, match=r"has no tokenizer .* --tokenizer gpt2"):
        gpt2lab.import_model(source, tmp_path / "run")
    letters.save(source / "tokenizer.json")
    with pytest.raises(InputError, match=r"the tokenizer has \d+ ids, and the model of .* has 70: they do not belong"):
        gpt2lab.import_model(source, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


def test_characters_without_end_of_text_fit_a_model_of_exactly_the_characters(tmp_path: Path) -> None:
    source, characters = tmp_path / "theirs", CharTokenizer("abcdefgh")
    theirs = save_gpt2(source, 8)
    characters.save(tmp_path / "characters.json")
    gpt2lab.import_model(source, tmp_path / "run", tokenizer=tmp_path / "characters.json")
    assert_same_logits(gpt2lab.load(tmp_path / "run")[0], theirs)


# What is refused


class Evil:
    """What runs when a pickle of it is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_wants_to_run_something_does_not(tmp_path: Path, zipped: bool) -> None:
    path, mark = tmp_path / "ckpt.pt", tmp_path / "ran"
    torch.save({"model": Evil(mark)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"holds more than tensors and plain values.*was not read"):
        read(path)
    path.write_bytes(pickle.dumps(Evil(mark)))
    with pytest.raises(InputError, match=r"ckpt\.pt "):
        read(path)
    assert not mark.exists()


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    values = json.loads(path.read_text(encoding="utf-8")) | changes
    path.write_text(json.dumps({n: v for n, v in values.items() if v is not ...}), encoding="utf-8")


@pytest.mark.parametrize(
    ("maker", "changes", "sentence"),
    [
        (gpt2, {"n_embd": 28}, r"has transformer\.wte\.weight of shape \(23, 24\) where .* ask for \(23, 28\)"),
        (gpt2, {"n_inner": 44}, r"c_fc\.weight of shape \(40, 24\) where .* ask for \(44, 24\) \(both as out"),
        (gpt2, {"n_layer": 3}, r"has no transformer\.h\.2\.ln_1\.weight, which a GPT2LMHeadModel of its settings has"),
        (gpt2, {"n_layer": 1}, r"has no place for: transformer\.h\.1\..* and \d+ more"),
        (gpt2, {"n_head": 5}, r"num_heads=5 does not divide embed_dim=24"),
        (gpt2, {"activation_function": "silu"}, r"has the activation 'silu', and gpt2lab's models have only"),
        (gpt2, {"add_cross_attention": True}, r"attends to a second text \(add_cross_attention\)"),
        (gpt2, {"model_type": "llama"}, r"of the kind 'llama'; gpt2lab reads gpt2, gpt_bigcode, starcoder2"),
        (gpt2, {"model_type": ...}, r"of the kind None; gpt2lab reads"),
        (gpt2, {"quantization_config": {"bits": 4}}, r"has a quantization_config in its config\.json"),
        (gpt2, {"auto_map": {"AutoModel": "evil.py"}}, r"has a auto_map in its config\.json"),
        (gpt2, {"n_positions": "13"}, r"config\.json is damaged: '13' stands where a whole number has to be"),
        (starcoder2, {"num_key_value_heads": 3}, r"num_kv_heads=3 does not divide num_heads=4"),
        (starcoder2, {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, r"turns positions in a way that"),
        (starcoder2, {"rope_scaling": {"type": "linear", "factor": 2.0}}, r"turns positions in a way that"),
        (bigcode, {"multi_query": False}, r"c_attn\.weight of shape \(36, 24\) where its settings ask for \(72, 24\)"),
    ],
)  # fmt: skip
def test_what_a_gpt2_cannot_be_is_refused_by_name(
    maker: Callable[..., PreTrainedModel], changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    drawn(maker()).save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(InputError, match=sentence):
        read(tmp_path)


def _tensors(folder: Path, change: Callable[[dict[str, Tensor]], None], theirs: PreTrainedModel) -> None:
    tensors = dict(theirs.state_dict())
    change(tensors)
    save_weights(tensors, folder / "model.safetensors")


def test_weights_that_are_missing_too_many_or_damaged_are_refused(tmp_path: Path) -> None:
    theirs = drawn(gpt2())
    theirs.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    _tensors(tmp_path, lambda t: t.update({"score.weight": torch.ones(2, 2)}), theirs)
    with pytest.raises(InputError, match=r"has no place for: transformer\.score\.weight"):
        read(tmp_path)
    _tensors(tmp_path, lambda t: t.pop("transformer.h.0.mlp.c_fc.bias"), theirs)
    with pytest.raises(InputError, match=r"has no transformer\.h\.0\.mlp\.c_fc\.bias"):
        read(tmp_path)
    _tensors(tmp_path, lambda t: t.update({"lm_head.weight": torch.ones(V, C)}), theirs)
    with pytest.raises(InputError, match=r"has a lm_head\.weight that differs from transformer\.wte\.weight"):
        read(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors is damaged or cut short"):
        read(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"has a config\.json, but no weights"):
        read(tmp_path)


def test_what_is_no_model_is_told_what_it_is(tmp_path: Path) -> None:
    empty, ours = tmp_path / "empty", tmp_path / "ours"
    empty.mkdir()
    with pytest.raises(InputError, match="holds no model: there is neither"):
        read(empty)
    with pytest.raises(InputError, match=r"there is no .*/nothing; give a folder"):
        read(tmp_path / "nothing")
    GPT2(V, CONTEXT, C, H, 40, 2).save(ours)
    with pytest.raises(InputError, match=r"is a model of gpt2lab; gpt2lab\.load and every command read it as it is"):
        read(ours)
    torch.save([1, 2], empty / "list.pt")
    with pytest.raises(InputError, match=r"holds no weights by name"):
        read(empty)
    save_weights({"a": torch.ones(2)}, tmp_path / "other" / "x.safetensors")
    with pytest.raises(InputError, match=r"holds no GPT-2: its weights lack transformer\.wte\.weight"):
        read(tmp_path / "other")
    theirs = drawn(gpt2(**NO_DROPOUT))
    save_weights(dict(theirs.state_dict()), tmp_path / "bare" / "x.safetensors")
    with pytest.raises(InputError, match="holds matrices as Transformers has them; give the folder"):
        read(tmp_path / "bare", num_heads=H)
    drawn(gpt2()).save_pretrained(tmp_path / "said")
    with pytest.raises(InputError, match="says itself what its num_heads is; leave out --num-heads"):
        read(tmp_path / "said", num_heads=H)
