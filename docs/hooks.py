"""What the site shows besides the pages of this folder: README, the files that pages link to, and declared options."""

import ast
import posixpath
import re
from pathlib import Path
from typing import Any

import griffe
from cyclopts import App
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from gpt2lab.cli.app import app
from gpt2lab.options import declared, expected, options_of
from gpt2lab.runs import settings

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"(?<=\]\()[^)#\s]+")  # the path in [words](path#anchor)
ROLE = re.compile(r":(?:class|data|func|meth|mod):<code>([\w.]+)</code>")
SETTINGS = re.compile(r"<!-- options of (\w+) -->")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README as the first page, and every file of the repository that a page links to."""
    waiting = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *(f"docs/{file.src_uri}" for file in files)]
    for path in waiting:  # which grows
        if files.get_file_from_path(_in_site(path)) is None:
            files.append(File.generated(config, _in_site(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            linked = (_target(path, link) for link in LINK.findall((ROOT / path).read_text(encoding="utf-8")))
            waiting += [link for link in dict.fromkeys(linked) if (ROOT / link).is_file() and link not in waiting]
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Lead links to where the files are in the site, and put in what is declared in the code."""
    path = Path(str(page.file.abs_src_path)).relative_to(ROOT).as_posix()

    def moved(link: re.Match[str]) -> str:
        target = _target(path, link[0])
        folder = posixpath.dirname(page.file.src_uri) or "."
        return posixpath.relpath(_in_site(target), folder) if (ROOT / target).is_file() else link[0]

    markdown = SETTINGS.sub(lambda marker: _options(getattr(settings, marker[1])), LINK.sub(moved, markdown))
    return markdown.replace("<!-- commands -->", _commands())


def on_page_content(html: str, **_: Any) -> str:
    """Make the roles of docstrings, such as :func:`gpt2lab.train`, links where the site has what they name."""
    return ROLE.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', html)


def _target(path: str, link: str) -> str:
    """The file that a link in another one means; both from the root of the repository."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _in_site(path: str) -> str:
    """Where a file of the repository is in the site."""
    return "index.md" if path == "README.md" else path.removeprefix("docs/")


def _options(kind: type) -> str:
    """A table of the options that a settings class itself declares."""
    rows = ["| option | meaning | value | default | may change |", "|---|---|---|---|---|"]
    for name, (hint, of) in options_of(kind).items():
        if name not in vars(kind)["__annotations__"]:
            continue
        about = declared(of)
        flag = f"`--{name.replace('_', '-')}`" if about.flag else f"`{name}` (Python only)"
        resume = "on resume" if about.on_resume else ""
        arms = {"any": "by arm", "arm": "by arm", "all": "for all arms", "none": ""}[about.in_comparison]
        cells = [
            f"{flag}{{ #{name} }}",
            about.meaning,
            "text" if about.parse else expected(hint, about),
            about.default or _default(of.default),
            ", ".join(filter(None, (resume, arms))),
        ]
        rows.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |")
    return "\n".join(rows)


def _default(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "" if value is None else "yes" if value else "no"
    return f"`{','.join(map(str, value)) if isinstance(value, tuple) else value}`"


def _commands(of: App = app, name: str = "gpt2lab") -> str:
    """The help of every command but train, whose options have a page of their own."""
    helps = []
    for command in of:
        words = f"{name} {command}"
        if command.startswith("-") or words == "gpt2lab train":
            continue
        if any(not sub.startswith("-") for sub in of[command]):  # such as data, which only groups commands
            helps.append(_commands(of[command], words))
        else:
            _, text = of[command].generate_docs(usage_name=words).split("\n", 1)  # without its heading
            helps.append(f"## {words}\n{text}")
    return "\n\n".join(helps)


class DeclaredOptions(griffe.Extension):
    """Shows in the reference what the code derives from declarations of options."""

    def on_attribute_instance(self, *, node: Any, attr: griffe.Attribute, **_: Any) -> None:
        """Give a field that is declared as ``option(default, meaning, …)`` its default and its meaning."""
        call = getattr(node, "value", None)
        if not (isinstance(call, ast.Call) and ast.unparse(call.func) == "option"):
            return
        given = [ast.literal_eval(argument.value) for argument in call.keywords if argument.arg == "meaning"]
        meaning = ast.literal_eval(call.args[1]) if len(call.args) > 1 else given[0]
        attr.value = ast.unparse(call.args[0]) if call.args else None
        attr.docstring = griffe.Docstring(meaning, parent=attr)

    def on_package(self, *, pkg: griffe.Module, **_: Any) -> None:
        """Give a method under ``@method_taking(Class)`` the parameters of the class."""
        for module in pkg.modules.values():
            self.on_package(pkg=module)
        for kind in pkg.classes.values():
            for method in () if kind.is_alias else kind.functions.values():
                for call in (decorator.value for decorator in method.decorators):
                    if isinstance(call, griffe.ExprCall) and str(call.function) == "method_taking":
                        method.parameters = pkg[str(call.arguments[0])].parameters
