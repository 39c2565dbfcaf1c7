"""A real Chromium, and a page that is open in it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Locator, Page, sync_playwright

LONG = 60_000  # milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed (Debian: apt install chromium)")
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


class Opened:
    """A page of ours that was opened, what went wrong on it, and what it asked for."""

    def __init__(self, browser: Browser, address: str | Path, **options: Any) -> None:
        context = browser.new_context(**options)
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        self.page: Page = context.new_page()
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("console", lambda message: self.wrong.append(message.text))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(address.as_uri() if isinstance(address, Path) else address)
        self.is_ready()

    def is_ready(self) -> None:
        self.page.locator("#start:enabled").wait_for(state="attached", timeout=LONG)

    def option(self, label: str, value: object) -> None:
        if not self.page.get_by_label(label).is_visible():
            self.page.get_by_text("Options").click()
        self.page.get_by_label(label).fill(str(value))

    def write(self, prompt: str, button: str = "Write") -> str:
        self.page.locator("textarea").first.fill(prompt)
        self.page.get_by_role("button", name=button).click()
        self.is_ready()
        return self.text

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def look(self, place: int) -> None:
        """Choose a token in the view in which one looks, and wait until its attention is there."""
        self.tab("Look")
        self.page.locator(f"#token-{place}").click()
        self.page.locator(".head").first.wait_for()

    @property
    def ids(self) -> list[int]:
        found: list[int] = self.page.evaluate("gpt2lab.columns[0].branch.ids")
        return found

    def branch(self, number: int) -> Locator:
        return self.page.get_by_role("button", name=f"Branch {number}")

    @property
    def text(self) -> str:
        return self.page.locator("#text").text_content() or ""

    @property
    def texts(self) -> list[str]:
        """Of all models that were chosen."""
        return self.page.locator(".column .text").all_text_contents()

    @property
    def status(self) -> str:
        return self.page.get_by_role("status").text_content() or ""
