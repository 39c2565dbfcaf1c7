"""A model as one HTML file, in a real browser: it writes what Python writes, and nothing else happens."""

import hashlib
import json
import math
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from hypothesis import given, settings
from hypothesis import strategies as st
from playwright.sync_api import Browser
from torch import Tensor

import gpt2lab
from gpt2lab import GPT2, CharTokenizer, InputError
from gpt2lab.data.tokenizers import BPETokenizer, Tokenizer
from gpt2lab.generation.scores import scored
from gpt2lab.generation.weights import rounded
from gpt2lab.interchange import html_page
from gpt2lab.interchange.html_page import PAGE, Wasm, packed
from tests.browser import LONG, Opened, browser
from tests.interchange.made import drawn, random_text
from tests.model import reference
from tests.model.reference import ALiBi, dense_attention, dense_logits

__all__ = ["browser"]

LETTERS = CharTokenizer("abcdefghijklmnopqrstuvw\n ")
WORDS = BPETokenizer.train(["The king's 12 queens, and  the night of Zoë's 中文 don't\n\n speak " * 9], 320)


@st.composite
def any_switches(draw: st.DrawFn) -> dict[str, Any]:
    return {
        "position": draw(st.sampled_from(["learned", "rope", "none", ("rope", "none")])),
        "rope_fraction": draw(st.sampled_from([1.0, 1 / 3])),
        "num_kv_heads": draw(st.sampled_from([None, 1, 2])),
        "window": draw(st.sampled_from([None, 1, 5, (3, None)])),
        "qk_norm": draw(st.booleans()),
        "sinks": draw(st.booleans()),
        "tie_embeddings": draw(st.booleans()),
        "bias": draw(st.booleans()),
        "activation": draw(st.sampled_from(["gelu_tanh", "gelu", "relu"])),
        "layer_norm_epsilon": draw(st.sampled_from([1e-5, 0.1])),
    }


@settings(max_examples=30)
@given(switches=any_switches(), width=st.sampled_from([24, 40]))
def test_the_engine_computes_what_the_textbook_does_for_every_switch(switches: dict[str, Any], width: int) -> None:
    width = 24 if switches["rope_fraction"] != 1 else width
    model = drawn(GPT2(23, 32, width, 4, 40, 2, **switches))
    (ids,) = random_text(23, 32, 1)
    engine = Wasm(model, packed(model))
    logits, weights = dense(rounded(model, "int8"), ids)
    torch.testing.assert_close(engine.read(ids.tolist()), logits, rtol=0, atol=1e-4)
    for found, wanted in zip(engine.attention(), weights, strict=True):
        seen = found.shape[1]
        torch.testing.assert_close(found, wanted[:, -seen:], rtol=0, atol=1e-5)
        assert not wanted[:, :-seen].any()


def dense(model: GPT2, ids: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Logits (T, V), and of each layer how the last token attends (H, T): with one-hot values, what is mixed."""
    found: list[Tensor] = []

    def spied(q: Tensor, k: Tensor, v: Tensor, **given: Any) -> Tensor:
        found.append(dense_attention(q, k, torch.eye(k.shape[2]).expand(*k.shape[:3], -1), **given)[0, :, -1])
        return dense_attention(q, k, v, **given)

    with patch.object(reference, "dense_attention", spied):
        return dense_logits(model, ids), found


def test_the_default_model_is_less_than_one_and_a_half_megabytes(tmp_path: Path) -> None:
    model = GPT2(85, 64, 128, 4, 512, 3, position="rope", num_kv_heads=2, window=16)
    tokenizer = CharTokenizer(map(chr, range(32, 116)))
    html_page.write(model, tokenizer, packed(model), tmp_path / "page.html", "default")
    assert 500_000 < (tmp_path / "page.html").stat().st_size < 1_500_000


def test_an_attention_of_your_own_and_a_missing_tokenizer_are_refused(tmp_path: Path) -> None:
    own = GPT2(26, 32, 24, 4, 40, 2, attention=ALiBi, position="none")
    with pytest.raises(InputError, match="the page's engine has no ALiBi, which is your own"):
        gpt2lab.export(own, "html", tmp_path / "x.html", tokenizer=LETTERS)
    with pytest.raises(InputError, match="a file of html holds its tokenizer"):
        gpt2lab.export(drawn(GPT2(26, 32, 24, 4, 40, 2)), "html", tmp_path / "x.html")
    assert [*tmp_path.iterdir()] == []


def test_the_engine_is_the_one_whose_hash_is_committed() -> None:
    told = (PAGE / "engine.wasm.sha256").read_text(encoding="utf-8").split()
    assert told == [hashlib.sha256((PAGE / "engine.wasm").read_bytes()).hexdigest(), "engine.wasm"]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("wasm-ld") is None, reason="clang and lld are not installed")
def test_the_engine_that_is_built_again_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = drawn(GPT2(23, 32, 24, 4, 40, 2, position="rope", num_kv_heads=2, window=5, sinks=True, qk_norm=True))
    (ids,) = random_text(23, 32, 1)
    before = Wasm(model, packed(model)).read(ids.tolist())
    subprocess.run([PAGE / "build.sh", tmp_path / "engine.wasm"], check=True)
    monkeypatch.setattr(html_page, "PAGE", tmp_path)
    torch.testing.assert_close(Wasm(model, packed(model)).read(ids.tolist()), before, rtol=0, atol=1e-6)


def test_the_servers_page_has_nothing_inline_and_nothing_from_elsewhere() -> None:
    page = html_page.server_page()
    assert re.findall(r"<(?:script|style|link)[^>]*>", page) == [
        '<link rel="icon" href="data:,">',
        '<link rel="stylesheet" href="/page/page.css">',
        '<script type="module" src="/page/main.js">',
    ]
    assert not re.search(r'style="|onclick|https?://', page)
    assert [view in page for view in ("Write", "Look", "Train", "About")] == [True] * 4


# In the browser


def made(model: GPT2, tokenizer: Tokenizer, path: Path) -> Path:
    gpt2lab.export(model, "html", path, tokenizer=tokenizer)
    return path


def model_with(tokenizer: Tokenizer, **switches: Any) -> GPT2:
    return drawn(GPT2(tokenizer.vocab_size, 32, 24, 4, 40, 2, **switches))


@pytest.mark.parametrize(
    ("switches", "tokenizer"),
    [({"position": "rope", "num_kv_heads": 2, "window": 5}, LETTERS), ({"window": (5, None), "sinks": True}, WORDS)],
    ids=["endless", "learned"],
)
def test_greedy_text_is_pythons_for_500_tokens(
    switches: dict[str, Any], tokenizer: Tokenizer, browser: Browser, tmp_path: Path
) -> None:
    model = model_with(tokenizer, **switches)
    opened = Opened(browser, made(model, tokenizer, tmp_path / "page.html"))
    opened.option("Temperature", 0)
    opened.option("Tokens", 500)
    prompt = "the night of the queens " * 9 if tokenizer is WORDS else "abc "  # longer than the context, or shorter
    found = opened.write(prompt)
    ids = torch.from_numpy(tokenizer.encode(prompt))[None]
    ours = gpt2lab.generate(rounded(model, "int8"), ids, 500, step="eager", temperature=0)[0].tolist()
    assert found == tokenizer.decode(ours)
    assert "500 tokens" in opened.status
    assert (opened.wrong, len(opened.asked)) == ([], 1)  # the file itself


@pytest.mark.slow
def test_it_writes_stops_goes_on_and_repeats_what_a_seed_wrote(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, made(model_with(LETTERS), LETTERS, tmp_path / "page.html"))
    assert len(opened.write("")) >= 500  # without any choice
    opened.option("Seed", 7)
    opened.option("Tokens", 300)
    first = opened.write("abc")
    assert opened.write("abc") == first
    assert len(opened.write("abc", "Continue")) > len(first) + 250
    assert opened.text.startswith(first)
    opened.option("Seed", 8)
    assert opened.write("abc") != first
    opened.option("Stop at this text", first[20:22])
    opened.option("Seed", 7)
    assert opened.write("abc") == "abc" + first[3 : first.index(first[20:22], 3)]
    opened.option("Stop at this text", "")
    opened.option("Tokens", 10_000_000)
    opened.page.locator("textarea").first.focus()
    opened.page.keyboard.press("Control+Enter")
    opened.page.locator("#stop:enabled").wait_for()
    opened.page.keyboard.press("Escape")
    opened.is_ready()
    opened.page.get_by_role("button", name="Write").click()
    opened.page.get_by_role("button", name="Stop").click()
    opened.is_ready()
    opened.page.get_by_role("button", name="Copy").click()
    assert opened.page.evaluate("navigator.clipboard.readText()") == opened.text
    assert opened.wrong == []


@pytest.mark.slow
def test_a_text_is_written_again_with_another_seed_and_given_back_to_the_prompt(
    browser: Browser, tmp_path: Path
) -> None:
    opened = Opened(browser, made(model_with(LETTERS), LETTERS, tmp_path / "page.html"))
    opened.option("Seed", 7)
    opened.option("Tokens", 100)
    first = opened.write("abc")
    opened.page.get_by_role("button", name="Regenerate").click()
    opened.is_ready()
    assert opened.page.get_by_label("Seed").input_value() == "7"
    again, seed = opened.text, opened.status.rpartition(" ")[2]
    assert again.startswith("abc")
    assert again != first
    assert seed != "7"
    assert opened.status == f"100 tokens · seed {seed}"
    opened.page.get_by_role("button", name="Edit").click()
    assert opened.page.locator("textarea").first.input_value() == again
    assert opened.write(again[:50]).startswith(again[:50])
    assert re.fullmatch(
        r"[\d,]+ tokens/s · [\d.]+ ms to the first · cache 12 kB", opened.page.locator(".figures").inner_text()
    )
    assert opened.wrong == []


@pytest.mark.slow
def test_sampling_options_keep_what_they_say(browser: Browser, tmp_path: Path) -> None:
    model = model_with(LETTERS, position="rope", window=5)
    opened = Opened(browser, made(model, LETTERS, tmp_path / "page.html"))
    opened.option("Tokens", 300)
    opened.option("Top k", 1)
    likeliest = opened.write("abc")
    opened.option("Top k", "")
    for label, value in [("Top p", 1e-9), ("Min p", 1), ("Temperature", 1e-6)]:
        opened.option(label, value)
        assert opened.write("abc") == likeliest
        opened.option(label, 0.8 if label == "Temperature" else "")
    assert opened.write("abc") != likeliest


def test_words_are_encoded_as_the_tokenizer_does(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, made(model_with(WORDS), WORDS, tmp_path / "page.html"))
    for text in [
        "The king's 12 queens don't  speak\n\n of Zoë's 中文",
        " a",
        "  \n x ",
        "👨‍👩 é\t½",
        "<|endoftext|>",
        "'ll'",
    ]:
        assert (
            opened.page.evaluate("text => gpt2lab.engines[0].tokenizer.encode(text)", text)
            == WORDS.encode(text).tolist()
        ), text


ENDLESS = {"position": "rope", "num_kv_heads": 2, "window": 5, "sinks": True}


def test_a_text_is_branched_at_a_token_and_walked_back(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, made(model_with(LETTERS, **ENDLESS), LETTERS, tmp_path / "page.html"))
    page = opened.page
    opened.option("Tokens", 120)
    first = opened.write("abc")
    before = opened.ids
    tops = page.evaluate(
        "gpt2lab.columns[0].branch.tokens.map(({ top }) => top.map(({ logprob }) => Math.exp(logprob)))"
    )
    assert [len(top) for top in tops] == [0] + [5] * 122
    assert all(sum(top) < 1 + 1e-6 and sorted(top, reverse=True) == top for top in tops)
    opened.tab("Look")
    page.locator("#token-40").hover()
    assert page.locator("#tip li").count() == 5
    opened.look(40)
    page.locator(".alternatives button:enabled").first.click()
    page.locator("#look-stop").wait_for(state="hidden", timeout=LONG)
    second, after = opened.text, opened.ids
    assert (after[:40], len(after)) == (before[:40], 41 + 120)
    assert after[40] != before[40]
    assert page.locator("#pieces").text_content() == second
    opened.branch(1).click()
    assert opened.ids == before
    assert opened.text == page.locator("#pieces").text_content() == first
    opened.branch(2).click()
    assert opened.text == second
    opened.branch(2).and_(page.locator(":focus")).wait_for()
    page.locator("#pieces").focus()
    page.keyboard.press("ArrowLeft")
    assert page.locator("#pieces").get_attribute("aria-activedescendant") == "token-39"
    assert page.get_by_role("option", selected=True).get_attribute("id") == "token-39"
    assert opened.wrong == []


@pytest.mark.parametrize("switches", [ENDLESS, {"window": (5, None)}], ids=["endless", "learned"])
def test_what_a_token_sees_is_what_it_sees_in_python(
    switches: dict[str, Any], browser: Browser, tmp_path: Path
) -> None:
    model = model_with(LETTERS, **switches)
    opened = Opened(browser, made(model, LETTERS, tmp_path / "page.html"))
    page = opened.page
    opened.option("Tokens", 60)
    opened.write("abc")
    ids = torch.tensor(opened.ids)
    for place in (29, 50, 20):  # the ring of a window cannot go back: then the text is read again
        opened.look(place)
        start = 0 if model.endless or place < 32 else place - (place - 32) % 17 - 15
        found = page.evaluate("ids => gpt2lab.engines[0].attention(ids)", ids[start : place + 1].tolist())
        _, wanted = dense(rounded(model, "int8"), ids[start : place + 1])
        for layer, rows in zip(found, wanted, strict=True):
            weights = torch.tensor(layer["weights"])
            torch.testing.assert_close(weights, rows[:, -weights.shape[1] :], rtol=0, atol=1e-5)
        names = page.locator(".head").evaluate_all("all => all.map((one) => one.getAttribute('aria-label'))")
        group = 2 if switches is ENDLESS else 4
        told = [
            f"Layer {layer}, head {h + 1}, key/value head {h * group // 4 + 1}: " for layer in (1, 2) for h in range(4)
        ]
        assert all(name.startswith(wanted) for name, wanted in zip(names, told, strict=True))
        assert page.locator(".edge").get_attribute("id") == f"token-{place - 4}"
        first = place - 8 if model.endless else start
        assert page.locator(".within, .reaches").first.get_attribute("id") == f"token-{first}"
        assert page.locator(".cut").count() == (start > 0)
    assert opened.wrong == []


@pytest.mark.parametrize("switches", [ENDLESS, {"window": (5, None)}], ids=["endless", "learned"])
def test_a_text_of_ones_own_has_pythons_loss(switches: dict[str, Any], browser: Browser, tmp_path: Path) -> None:
    model = model_with(LETTERS, **switches)
    opened = Opened(browser, made(model, LETTERS, tmp_path / "page.html"))
    opened.tab("Look")
    opened.page.get_by_text("Look at a text of your own").click()
    text = "the night of the queens\n and what there is " * 3
    opened.page.locator("#pasted").fill(text)
    opened.page.get_by_role("button", name="Read").click()
    opened.page.locator("#loss-mean").wait_for(timeout=LONG)
    found = opened.page.evaluate("gpt2lab.columns[0].branch.tokens.map(({ logprob }) => logprob)")
    wanted = [one.logprob for one in scored(rounded(model, "int8"), torch.from_numpy(LETTERS.encode(text)))]
    assert found[0] is wanted[0] is None
    assert found[1:] == pytest.approx(wanted[1:], abs=2e-4)
    mean = -sum(found[1:]) / len(found[1:])
    said = f"Mean loss {mean:.4f} nats per token, perplexity {math.exp(mean):.2f}, at temperature 1."
    assert opened.page.locator("#loss-mean").inner_text() == said
    assert opened.page.locator("#pieces").text_content() == text
    assert opened.status == f"{len(text)} tokens were read"
    assert opened.wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_axe_finds_nothing_wrong(scheme: Any, width: int, browser: Browser, tmp_path: Path) -> None:
    path = made(model_with(LETTERS, **ENDLESS), LETTERS, tmp_path / "page.html")
    opened = Opened(browser, path, viewport={"width": width, "height": 800}, color_scheme=scheme)
    opened.option("Tokens", 60)
    opened.write("abc")
    found = {"Write": Axe().run(opened.page)}
    opened.look(40)
    opened.page.locator(".alternatives button:enabled").first.click()
    opened.page.locator("#look-stop").wait_for(state="hidden", timeout=LONG)
    opened.look(50)
    opened.page.locator(".head").first.click()
    found["Look"] = Axe().run(opened.page)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.tab("About")
    found["About"] = Axe().run(opened.page)
    assert {tab: results.generate_report() for tab, results in found.items() if results.violations_count} == {}


def writing(text: str, tokenizer: CharTokenizer) -> GPT2:
    """A model that writes exactly this text, whatever it reads: the position alone says what comes next."""
    length = len(text) + 1
    model = GPT2(tokenizer.vocab_size, length, 2 * length, 1, 4, 1, tie_embeddings=False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.final_norm.weight.fill_(1)
        for place, character in enumerate(text):
            model.embeddings.position.weight[place, place] = 1
            model.lm_head.weight[tokenizer.stoi[character], place] = 1
    return model


def test_a_model_that_writes_html_is_shown_doing_so(browser: Browser, tmp_path: Path) -> None:
    evil = "<script>document.title='x'</script><img src=x onerror=\"document.title='x'\">"
    tokenizer = CharTokenizer(evil)
    model = writing(evil, tokenizer)
    html_page.write(model, tokenizer, packed(model), tmp_path / "page.html", "<b>evil</b>")
    opened = Opened(browser, tmp_path / "page.html")
    opened.option("Temperature", 0)
    opened.option("Tokens", len(evil))
    assert opened.write("<") == "<" + evil
    assert opened.page.title() == "<b>evil</b>"
    assert opened.page.locator("#text script, #text img, h1 b").count() == 0
    assert opened.write(evil[:5]).startswith(evil[:5])
    opened.tab("Look")
    assert opened.page.locator("#pieces script, #pieces img").count() == 0
    opened.page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: \"document.title = 'x'\"}))"
    )
    assert opened.page.title() == "<b>evil</b>"  # the policy lets only the page's own script run
    assert "Content Security Policy" in opened.wrong[-1]
    assert len(opened.asked) == 1


def test_a_prompt_with_unknown_characters_is_told(browser: Browser, tmp_path: Path) -> None:
    opened = Opened(browser, made(model_with(LETTERS), LETTERS, tmp_path / "page.html"))
    assert opened.write("Zoë") == ""
    assert opened.status == "The model does not know Z ë"


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_is_used_by_keyboard(scheme: Any, browser: Browser, tmp_path: Path) -> None:
    path = made(model_with(LETTERS), LETTERS, tmp_path / "page.html")
    opened = Opened(browser, path, viewport={"width": 360, "height": 640}, color_scheme=scheme)
    opened.write("abc")
    page = opened.page
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 22, 24)"
    assert dark == (scheme == "dark")
    page.get_by_role("tab", name="Write").focus()
    page.keyboard.press("ArrowLeft")
    assert page.get_by_role("tab", name="About").get_attribute("aria-selected") == "true"
    assert page.get_by_text("what that costs was not measured").is_visible()
    page.keyboard.press("ArrowRight")
    assert page.locator("textarea").first.is_visible()


@pytest.mark.slow
def test_a_run_says_what_rounding_costs_and_nothing_of_where_it_lay(
    modern: Path, browser: Browser, tmp_path: Path
) -> None:
    exported = gpt2lab.export(modern, "html", tmp_path / "page.html")
    assert exported.agreement.difference < 1e-4
    opened = Opened(browser, tmp_path / "page.html")
    opened.page.get_by_role("tab", name="About").click()
    found = gpt2lab.evaluate(modern, split="test", contexts=(), weights="int8")
    assert f"{found.loss:.4f} nats per token on rhyme.txt, test part" in opened.page.locator("#about").inner_text()
    assert f"changes the loss by {found.rounding:+.4f}" in opened.page.locator("#about").inner_text()
    written = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert str(modern.parent) not in written
    described = json.loads(written.split('id="model">')[1].split("</script>")[0])
    assert described["settings"][:3] == [gpt2lab.load(modern)[0].config.vocab_size, 16, 32]
