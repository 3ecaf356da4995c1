"""Imports run one way, planners know no kitchen, and the client stays light enough for a robot's small computer."""

import ast
import graphlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

from skills.library import SkillLibrary

ROOT = Path(__file__).parent.parent
PACKAGES = {"skills": {"skills"}, "planners": {"skills", "planners"}, "saycan_qt": {"skills", "planners", "saycan_qt"}}
ROOMS = {  # of saycan_qt, from the ground up: room -> the rooms that it may import
    "atomic": set(),
    "workers": set(),
    "options": set(),
    "language": set(),
    "data": {"atomic"},
    "networks": set(),
    "learning": {"atomic", "data", "networks", "workers"},
    "made_up": {"learning"},
    "kitchen": {"atomic", "data"},
    "services": {"atomic", "data", "learning", "options"},
    "page": {"options", "services"},
    "journey": {"data", "language", "options", "page", "services"},
    "evaluation": {"atomic", "data", "kitchen", "language", "learning", "networks", "options", "services", "workers"},
}
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in PACKAGES
    for path in (ROOT / package).rglob("*.py")
    if "v1" not in path.parts
}


def imports(name):
    """The modules, ours as far as a file, that a module imports anywhere in it."""
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively"
            found = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (full if full in FILES else node.module for full in found)


def room(name):
    """ "saycan_qt.data.reader" -> "data"; a command is a room of its own name."""
    return name.split(".")[1] if name.startswith("saycan_qt.") else ""


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package):
    forbidden = set(PACKAGES) - PACKAGES[package] | ({"torch", "mujoco"} if package == "skills" else set())
    mine = [name for name in FILES if name.split(".")[0] == package]
    assert mine and not [(name, m) for name in mine for m in imports(name) if m.split(".")[0] in forbidden]


@pytest.mark.parametrize("mine", ROOMS)
def test_rooms_import_one_way(mine):
    names = [name for name in FILES if room(name) == mine]
    reached = {(name, module) for name in names for module in imports(name) if room(module) not in ("", mine)}
    assert names and not [pair for pair in reached if room(pair[1]) not in ROOMS[mine]]


def test_no_file_imports_itself_by_a_detour():
    graph = {name: {module for module in imports(name) if module in FILES} for name in FILES}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError


def test_every_room_is_known():
    """What is in no room is a command, which has a `main`."""
    commands = [name for name in FILES if room(name) and room(name) not in ROOMS]
    assert not [name for name in commands if 'if __name__ == "__main__":' not in FILES[name].read_text()]


def test_no_folder_is_a_heap():
    """The commands stand in one row, which their names make easy to read."""
    held = [path.parent for name, path in FILES.items() if room(name) in ("", *ROOMS)]
    assert not [(folder, held.count(folder)) for folder in held if held.count(folder) > 16]


def test_planners_name_nothing_of_the_kitchen():
    library = SkillLibrary.load()
    words = {*library.objects, *(value for slot in ("place", "drawer") for value in library.values(slot))}
    words |= {"kitchen", "drawer", "counter", "trash", "snack", "coke", "cans"}
    words -= {"top", "middle", "bottom", "table"}  # plain words elsewhere
    named = re.compile(rf"\b(?!(?-i:Counter)\b)({'|'.join(map(re.escape, words))})\b", re.IGNORECASE)  # it is a class
    assert named.search("a drawer") and named.search("Kitchen(") and not named.search("import Counter")
    lines = [(path, line) for path in (ROOT / "planners").rglob("*.py") for line in path.read_text().splitlines()]
    assert lines and not [(path.name, line) for path, line in lines if named.search(line)]


def test_the_client_loads_neither_torch_nor_mujoco():
    code = "import sys, skills.client; print({'torch', 'mujoco', 'planners', 'saycan_qt'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "set()"
