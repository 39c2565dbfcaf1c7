"""The documentation: what its links lead to, and that it tells of everything that is public."""

import os
import re
import shlex
import subprocess
import sys
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

import gpt2lab
from gpt2lab.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_files_of_the_repository(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not urlsplit(link).scheme and not (page.parent / link).exists()] == []


def commands_of(page: Path) -> list[str]:
    """The commands in the shell blocks of a page; one that leaves something out with … is no command."""
    blocks = re.findall(r"^```sh\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [line for line in lines if line.startswith("gpt2lab ") and "…" not in line]


@pytest.mark.parametrize("command", sorted({command for page in PAGES for command in commands_of(page)}))
def test_every_command_in_the_docs_can_be_typed(command: str) -> None:
    app.parse_args(shlex.split(command, comments=True)[1:], exit_on_error=False, print_error=False)


def test_every_public_name_is_in_the_reference() -> None:
    shown = {name for page in PAGES for name in re.findall(r"^::: gpt2lab\.(\w+)$", page.read_text(), re.MULTILINE)}
    assert shown >= set(gpt2lab.__all__)


def test_the_version_to_cite_is_that_of_the_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])


@pytest.mark.slow
def test_the_python_of_the_readme_runs(tmp_path: Path, rhyme: str) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    script = "\n".join(blocks)
    for long, short in {
        "steps=200": "steps=2",
        "steps=400": "steps=2",
        "steps=500": "steps=2",
        "seeds=5": "seeds=2",
    }.items():
        assert long in script
        script = script.replace(long, short)
    (tmp_path / "novel.txt").write_text(f"It was a night. {rhyme}")
    (tmp_path / "readme.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "readme.py"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert re.search(r"^rope 25 \S+ \S+ \S+ \S+ (better|worse|no difference shown)$", done.stdout, re.MULTILINE)


class Html(HTMLParser):
    """What a page links to, what it loads by itself, and the places in it that links may name."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.places = {""}
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.places |= {named[name] for name in ("id", "name") if name in named}
        if "href" in named:
            (self.links if tag == "a" else self.loaded).append(named["href"])
        if "src" in named:
            self.loaded.append(named["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it; mkdocs ends with an error if there is a warning."""
    folder = tmp_path_factory.mktemp("docs") / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_every_link_of_the_site_leads_somewhere_and_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    pages = {path: Html(path) for path in site.rglob("*.html")}
    assert len(pages) > len(PAGES) / 2
    for path, page in pages.items():
        for link in (*page.links, *page.loaded):
            to = urlsplit(link)
            if to.scheme or to.netloc:
                assert link in page.links, f"{path} loads {link}"
                continue
            folder = site if to.path.startswith("/") else path.parent
            target = (folder / unquote(to.path).lstrip("/")).resolve() if to.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path} has a link to {link}"
            assert to.fragment == "" or unquote(to.fragment) in pages[target].places, f"{path} has a link to {link}"


@pytest.mark.slow
@pytest.mark.xdist_group("site")
def test_the_site_tells_of_every_command_and_of_every_option_of_train(site: Path) -> None:
    names = {f"gpt2lab-{name}" for name in app if not name.startswith("-")} - {"gpt2lab-train", "gpt2lab-data"}
    assert {"gpt2lab-data-pack", *names} <= Html(site / "commands.html").places
    flags = {argument.name for argument in app["train"].assemble_argument_collection() if argument.show}
    shown = re.findall(r"<code[^>]*>(--[\w-]+)</code>", (site / "options.html").read_text(encoding="utf-8"))
    assert len(flags) > 50
    assert flags <= set(shown)
