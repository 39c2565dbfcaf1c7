"""The server's page in a real Chromium: write, stop, branch, compare, look, trainings."""

import re
import shutil
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from gpt2lab import GPT2
from tests.browser import LONG, Opened, browser
from tests.cli.conftest import modern, original
from tests.interchange.made import drawn
from tests.serving.conftest import MODELS, Serving, serving
from tests.serving.test_api import written

__all__ = ["browser", "modern", "original"]

pytestmark = [pytest.mark.xdist_group("serving"), pytest.mark.filterwarnings("ignore:the context of")]


def test_models_write_side_by_side_what_python_writes(server: Serving, browser: Browser) -> None:
    opened = Opened(browser, server.address)
    opened.option("Temperature", 0.9)
    opened.option("Tokens", 90)
    opened.option("Seed", 7)
    opened.write("the night ")
    found = opened.texts
    right = [written(name, "the night ", 90, temperature=0.9, seed=7) for name in ("letters", "words")]
    # <|endoftext|> ends a text, and spells nothing
    assert [text.startswith("the night ") for text in found] == [True, True]
    assert [whole.startswith(text[10:]) for text, whole in zip(found, right, strict=True)] == [True, True]
    assert all(
        part in figures
        for figures in opened.page.locator(".figures").all_text_contents()
        for part in ("tokens/s", "ms to the first", "cache")
    )
    opened.page.get_by_role("checkbox", name="words").uncheck()
    opened.write("the night ")
    assert len(opened.texts) == 1
    assert opened.wrong == []
    assert {url.split("/")[2] for url in opened.asked} == {server.base.split("/")[2]}


def test_one_looks_at_a_token_and_branches_there(server: Serving, browser: Browser) -> None:
    opened = Opened(browser, server.address)
    opened.option("Tokens", 40)
    opened.option("Seed", 3)
    opened.write("the king ")
    (before, _) = opened.texts
    opened.tab("Look")
    pieces = opened.page.locator("#pieces [role=option]")
    pieces.nth(12).click()
    opened.page.locator("#token .head").first.wait_for(timeout=LONG)
    assert opened.page.locator("#token .head").count() == 8  # 4 heads in each of 2 layers
    assert pieces.nth(12 - 4).get_attribute("class").count("edge") == 1  # type: ignore[union-attr]
    opened.page.locator(".alternatives button:enabled").last.click()
    opened.page.locator("#branches button").nth(1).wait_for(timeout=LONG)
    opened.is_ready()
    opened.page.locator("#branches button").first.click()
    opened.tab("Write")
    assert opened.page.locator(".column .text").first.text_content() == before
    assert opened.wrong == []


@pytest.mark.slow
def test_what_is_stopped_stays_and_is_continued_edited_and_written_again(browser: Browser, tmp_path: Path) -> None:
    tokenizer, switches = MODELS["letters"]
    # without an id for <|endoftext|>, which would end a text by chance
    drawn(GPT2(tokenizer.vocab_size - 1, 32, 24, 4, 40, 2, **switches)).save(tmp_path / "letters", tokenizer)
    with serving(tmp_path / "letters", "--max-tokens", 10_000_000) as server:
        opened = Opened(browser, server.address)
        opened.option("Tokens", 10_000_000)
        opened.page.locator("#prompt").fill("the king ")
        opened.page.keyboard.press("Control+Enter")
        opened.page.locator("#text").get_by_text(re.compile(r"^the king [\s\S]{50}")).wait_for(timeout=LONG)
        opened.page.keyboard.press("Escape")
        opened.is_ready()
        assert server.get("health").json()["running"] == 0
        text = opened.page.locator("#text")
        stopped = text.text_content() or ""
        assert stopped.startswith("the king ")
        opened.option("Tokens", 50)
        opened.page.get_by_role("button", name="Continue").click()
        opened.is_ready()
        longer = text.text_content() or ""
        assert (longer[: len(stopped)], len(longer)) == (stopped, len(stopped) + 50)
        opened.page.get_by_role("button", name="Regenerate").click()  # what was written last
        opened.is_ready()
        again = text.text_content() or ""
        assert (again[: len(stopped)], len(again)) == (stopped, len(stopped) + 50)
        assert again != longer
        opened.page.get_by_role("button", name="Edit").click()
        assert opened.page.locator("#prompt").input_value() == again
        assert opened.wrong == []


@pytest.mark.slow
def test_a_key_is_taken_from_the_address_and_errors_are_told(folders: list[Path], browser: Browser) -> None:
    with serving(*folders, "--key", "abc", "--max-tokens", 50) as server:
        opened = Opened(browser, server.address)
        assert "abc" not in opened.page.url
        opened.option("Tokens", 99)
        opened.write("the king ")
        assert "max_tokens is 99; it has to be 50 or less" in (opened.page.get_by_role("status").text_content() or "")
        opened.page.goto("about:blank")
        opened.page.goto(server.base)
        opened.page.get_by_text("it ends in its key").wait_for(timeout=LONG)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_every_view_is_open_to_everybody(
    modern: Path, original: Path, browser: Browser, scheme: str, width: int, tmp_path: Path
) -> None:
    """No violation that axe-core finds, no sideways scrolling, and trainings with curves, samples and reports."""
    for run in (modern, original):
        shutil.copytree(run, tmp_path / "runs" / run.name)
    (tmp_path / "runs" / "mine").mkdir()
    (tmp_path / "runs" / "mine" / "report.html").write_text("<h1>better</h1>", encoding="utf-8")
    with serving(tmp_path / "runs" / "modern", tmp_path / "runs" / "original") as server:
        opened = Opened(browser, server.address, color_scheme=scheme, viewport={"width": width, "height": 800})
        opened.option("Tokens", 60)
        opened.write("the king ")
        for view in ("Write", "Look", "Train", "About"):
            opened.tab(view)
            if view == "Look":
                opened.page.locator("#pieces [role=option]").nth(8).click()  # of the prompt: what follows may be short
                opened.page.locator("#token .head").first.wait_for(timeout=LONG)
            if view == "Train":
                opened.page.locator("#curves svg").wait_for(timeout=LONG)
                opened.page.locator("#sample").get_by_text("\n").first.wait_for(timeout=LONG)
                with opened.page.context.expect_page() as other:
                    opened.page.locator("#reports a").click()
                assert other.value.locator("h1").text_content() == "better"
                other.value.close()
            found = Axe().run(opened.page)
            assert found.violations_count == 0, found.generate_report()
            assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.wrong == []
