"""How fast the exported HTML file writes, in a real Chromium: characters a second, and its size.

``python benchmarks/page.py`` (Debian: apt install chromium; pip install playwright wasmtime)
"""

import shutil
import statistics
import tempfile
import time
from pathlib import Path

from gpt2lab import GPT2, CharTokenizer
from gpt2lab.interchange import html_page

MODELS = {
    "default, 0.6 M": GPT2(65, 64, 128, 4, 512, 3, position="rope", num_kv_heads=2, window=16, seed=0),
    "original, 0.8 M, context 512": GPT2(65, 512, 128, 4, 512, 4, seed=0),
    "original, 10 M, context 256": GPT2(65, 256, 384, 6, 1536, 6, seed=0),
}
ROUNDS, CHARACTERS = 5, 3000


def main() -> None:
    """Print the table."""
    from playwright.sync_api import sync_playwright

    tokenizer = CharTokenizer(map(chr, range(33, 97)))
    folder = Path(tempfile.mkdtemp())
    print("| model | file | characters/s in Chromium | spread |\n|---|---|---|---|")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, model in MODELS.items():
            path = folder / "page.html"
            html_page.write(model, tokenizer, html_page.packed(model), path, name)
            page = browser.new_page()
            page.goto(path.as_uri())
            speeds = []
            for _ in range(ROUNDS):
                page.locator("#start:enabled").wait_for()
                page.evaluate(f"document.getElementById('tokens').value = {CHARACTERS}")
                begin = time.perf_counter()
                page.get_by_role("button", name="Write").click()
                page.locator("#start:enabled").wait_for(timeout=600_000)
                speeds.append(CHARACTERS / (time.perf_counter() - begin))
            spread = f"{min(speeds):,.0f} – {max(speeds):,.0f}"
            print(f"| {name} | {path.stat().st_size / 1e6:.2f} MB | {statistics.median(speeds):,.0f} | {spread} |")
            page.close()
        browser.close()


if __name__ == "__main__":
    main()
