"""The pictures of the README: the server's page, in a real browser, on two runs.

``python docs/picture.py runs/demo/context-64/modern/seed-1 runs/demo/context-64/original/seed-1`` writes docs/page.png
and docs/attention.png (Debian: apt install chromium; pip install playwright pillow).
"""

import shutil
import subprocess
import sys
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

WIDTH, HEIGHT = 1180, 700
PROMPT = "ROMEO:\nWhat light is this that breaks upon the sea,"


def main() -> None:
    """Write, look, and put what is seen into pictures."""
    command = [sys.executable, "-m", "gpt2lab", "serve", *sys.argv[1:], "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server, sync_playwright() as playwright:
        assert server.stdout is not None
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, device_scale_factor=1.5)
        page.goto(server.stdout.readline().strip())
        top, below = (Image.open(BytesIO(view(page))) for view in (written, looked_at))
        attention = Image.open(BytesIO(seen(page)))
        browser.close()
        server.terminate()
    whole = Image.new("RGB", (top.width, top.height + below.height))
    whole.paste(top, (0, 0))
    whole.paste(below, (0, top.height))
    for picture, name in ((whole, "page.png"), (attention.convert("RGB"), "attention.png")):
        picture.quantize(128).save(Path(__file__).parent / name, optimize=True)


def written(page: Page) -> bytes:
    """Two models on the same prompt."""
    page.locator("#start:enabled").wait_for()
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.locator("#prompt").fill(PROMPT)
    page.get_by_text("Options").click()
    page.get_by_label("Tokens").fill("400")
    page.get_by_label("Seed").fill("5")
    page.get_by_text("Options").click()
    page.get_by_role("button", name="Write", exact=True).click()
    page.locator("#stop:disabled").wait_for()
    return page.screenshot()


def looked_at(page: Page) -> bytes:
    """A token, its window, and its attention."""
    page.get_by_role("tab", name="Look").click()
    page.set_viewport_size({"width": WIDTH, "height": 2000})
    page.locator("#pieces [role=option]").nth(150).click()
    page.locator("#token .head").first.wait_for()
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)
    return clipped(page, "#look-found", 610)


def seen(page: Page) -> bytes:
    """Its attention in every layer."""
    heading = page.get_by_role("heading", name="What it does see")
    top, panel = heading.bounding_box(), page.locator("#token").bounding_box()
    assert top is not None
    assert panel is not None
    height = panel["y"] + panel["height"] - top["y"]
    return page.screenshot(
        clip=panel | {"x": panel["x"] - 15, "y": top["y"] - 15, "width": panel["width"] + 30, "height": height + 30}
    )


def clipped(page: Page, place: str, height: float) -> bytes:
    """So much of the page, from a place on."""
    box = page.locator(place).bounding_box()
    assert box is not None
    return page.screenshot(clip={"x": 0, "y": box["y"] - 20, "width": WIDTH, "height": height})


if __name__ == "__main__":
    main()
