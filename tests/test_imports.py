"""Who imports whom: down the house only, in no circle, and nothing that is not needed yet."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gpt2lab"

# The rooms of the house, from the cellar up. A module imports from its own room and from floors below.
FLOORS = [
    ["errors", "threads"],
    ["reading", "files", "hardware", "progress"],
    ["options", "manifests"],
    ["config", "plots", "native"],
    ["model", "data"],
    ["runs"],
    ["generation"],
    ["evaluation"],
    ["interchange", "training"],
    ["planning", "comparison", "retrofit", "serving"],
    ["cli", "worker"],
    ["__main__"],
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}


def module_name(path: Path) -> str:
    parts = ("gpt2lab", *path.relative_to(SOURCE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SOURCE.rglob("*.py")}


def imports_of(module: str) -> set[str]:
    """Modules of the package that a module imports itself: anywhere, late or only for types."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively, which this test does not follow"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in MODULES else str(node.module) for name in names}
    return found & MODULES.keys() - {module}


IMPORTS = {module: imports_of(module) for module in MODULES}


def room_of(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_a_floor() -> None:
    """A new folder or file of the package has to be put into FLOORS."""
    assert {room_of(module) for module in MODULES if module != "gpt2lab"} <= FLOOR.keys()


def test_no_module_imports_one_that_imports_it() -> None:
    graphlib.TopologicalSorter(IMPORTS).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("module", sorted(MODULES.keys() - {"gpt2lab"}))
def test_a_module_imports_from_its_own_room_and_from_floors_below(module: str) -> None:
    room = room_of(module)
    upwards = {
        imported
        for imported in IMPORTS[module]
        if imported == "gpt2lab"  # which offers everything, so it stands above
        or (room_of(imported) != room and FLOOR[room_of(imported)] >= FLOOR[room])
    }
    assert upwards == set()


def test_nothing_but_the_command_line_imports_the_command_line() -> None:
    importing = {
        module for module, imported in IMPORTS.items() if any(name.startswith("gpt2lab.cli") for name in imported)
    }
    assert {room_of(module) for module in importing - {"gpt2lab"}} == {"cli", "__main__"}
    assert "gpt2lab" not in importing


def imported_by(program: str, *arguments: object) -> list[str]:
    """What a fresh Python has imported after a program, which prints nothing itself."""
    command = [sys.executable, "-c", f"import json, sys\n{program}\nprint(json.dumps(list(sys.modules)))"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    modules: list[str] = json.loads(done.stdout.splitlines()[-1])
    return modules


def test_importing_the_package_imports_neither_torch_nor_numpy() -> None:
    assert {"torch", "numpy"}.isdisjoint(imported_by("import gpt2lab\ndir(gpt2lab)"))


def test_help_imports_neither_torch_nor_numpy() -> None:
    program = "from gpt2lab.cli import main\nmain(['--help'])\nmain(['train', '--help'])"
    assert {"torch", "numpy"}.isdisjoint(imported_by(program))


def test_loading_a_run_and_writing_with_it_imports_nothing_that_trains_measures_or_draws() -> None:
    program = "import gpt2lab\ngpt2lab.generate(sys.argv[1], prompt='the', tokens=1)"
    modules = imported_by(program, ROOT / "tests" / "old_folders" / "run")
    assert "torch" in modules
    rooms = {name.split(".")[1] for name in modules if name.startswith("gpt2lab.")}
    assert {"training", "evaluation", "comparison", "planning", "serving", "cli", "plots"}.isdisjoint(rooms)
    assert {"matplotlib", "scipy", "jinja2", "torch._dynamo"}.isdisjoint(modules)
