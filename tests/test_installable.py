"""What is installed is whole: a wheel alone in an empty folder, all commands under one name, and a list for a computer
that only drives."""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from saycan_qt.__main__ import commands, main

ROOT = Path(__file__).parent.parent
PACKAGES = ("skills", "planners", "saycan_qt")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
MORE = {  # which come with other extras, or to a machine that serves
    "skills.generate": {"grpc_tools"},
    "skills.wire.tracing": {"opentelemetry"},
    "skills.openpi.codec": {"msgpack"},
    "skills.openpi.endpoint": {"websockets"},
    "skills.openpi.actor": {"websockets"},
}
DRIVES = ("saycan_qt.__main__", "saycan_qt.grant", "saycan_qt.reload", "saycan_qt.requires", "saycan_qt.robot")
LAZY = ("saycan_qt.services.exposition",)  # imported where it is asked for, with --metrics-port


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")  # not here: setuptools leaves a build folder, and packs what is in one
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", build, "."], cwd=source, capture_output=True, check=True)
    return next(source.glob("*.whl"))


@pytest.fixture
def outside(wheel, tmp_path):
    """Runs Python in an empty folder, where of this project there is what the wheel holds."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    with zipfile.ZipFile(wheel) as file:
        file.extractall(site)

    def run(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(site)}
        ran = subprocess.run([sys.executable, *arguments], cwd=empty, env=environment, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    return run


def files_of(folder):
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.is_file()}


def test_a_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as file:
        held = {name for name in file.namelist() if ".dist-info/" not in name}
    assert held == {name for package in PACKAGES for name in files_of(package) if "__pycache__" not in name}
    assert wheel.stat().st_size < 50e6


@pytest.mark.slow  # as .ci/run does with a whole run
def test_a_wheel_finds_what_it_ships_from_an_empty_folder(outside):
    code = """
import planners.weights, saycan_qt, skills
from saycan_qt.kitchen.language.pairs import PairGenerator
from saycan_qt.kitchen.language.spoken import kitchen_language
from saycan_qt.learning import checkpoint
from skills.library import SkillLibrary
from skills.robot_folder import default_robot

checkpoint.load("affordance"), checkpoint.load("execution"), default_robot().library, kitchen_language()
PairGenerator(SkillLibrary.load())
print(planners.weights.REQUIREMENTS.read_text())
print(planners.__path__[0], saycan_qt.__path__[0], skills.__path__[0], sep="\\n")
"""
    *pins, planners, saycan_qt, skills = outside("-c", code).split()
    assert len(pins) == 4 and Path(planners).parent == Path(saycan_qt).parent == Path(skills).parent != ROOT


def test_an_extra_is_printed_for_pip_to_install_without_the_rest(outside):
    printed = outside("-m", "saycan_qt", "requires", "robot").split()
    assert {names(line) for line in printed} == {names(line) for line in EXTRAS["robot"]}


def names(requirement):
    """ "numpy>=2,<3" -> "numpy" """
    return requirement.split("<")[0].split(">")[0].lower().replace("_", "-")


def test_the_list_for_a_computer_that_only_drives_asks_for_no_other_versions():
    assert set(EXTRAS["robot"]) <= set(PROJECT["dependencies"])


def path_of(module):
    path = ROOT / module.replace(".", "/")
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else path / "__init__.py"


def imported(module, anywhere):
    """What a module imports when it is imported itself, or anywhere in it."""
    tree = ast.parse(path_of(module).read_text())
    for node in ast.walk(tree) if anywhere else tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            ours = [f"{node.module}.{alias.name}" for alias in node.names if node.module.split(".")[0] in PACKAGES]
            yield from [full for full in ours if path_of(full).exists()] or [node.module]


def foreign_modules():
    """Module -> who imports it, of all that skills/ might ever import and what the driving commands begin with."""
    anywhere = {".".join(p.relative_to(ROOT).with_suffix("").parts) for p in (ROOT / "skills").rglob("*.py")}
    waiting, seen, foreign = [*anywhere, *DRIVES, *LAZY], set(), {}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        for module in imported(name.removesuffix(".__init__"), name in anywhere):
            package = module.split(".")[0]
            if package in PACKAGES:
                waiting.append(module)
            elif package not in sys.stdlib_module_names and package not in MORE.get(name, ()):
                foreign[module] = name
    return foreign


def test_the_list_for_a_computer_that_only_drives_is_complete():
    files = {str(file) for line in EXTRAS["robot"] for file in metadata.files(names(line)) or ()}
    found = foreign_modules()
    assert {"grpc", "google.rpc.status_pb2", "grpc_status", "yaml", "tyro"} <= set(found)  # it does see them
    paths = {module: module.replace(".", "/") for module in found}
    lacking = {m: found[m] for m, path in paths.items() if not {f"{path}.py", f"{path}/__init__.py"} & files}
    assert not lacking


@pytest.fixture
def light(tmp_path):
    """Runs Python where nothing of the dependencies can be imported but what that list names."""
    heavy = {names(line) for line in PROJECT["dependencies"]} - {names(line) for line in EXTRAS["robot"]}
    distributions = metadata.packages_distributions().items()
    hidden = {package for package, of in distributions if {names(one) for one in of} <= heavy}
    assert {"torch", "mujoco", "rich", "transformers"} <= hidden
    hook = f"""
import sys

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name in {hidden!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Hidden())
"""
    (tmp_path / "sitecustomize.py").write_text(hook)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}

    def run(*arguments):
        return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)

    return run


@pytest.mark.slow  # as .ci/run does with a whole skill
def test_a_robot_drives_without_the_heavy_packages(light):
    ran = light(str(ROOT / "examples/own_robot.py"))
    assert ran.returncode == 0 and ran.stdout.count("succeeded") == 3, ran.stderr


def test_a_command_that_needs_more_than_is_installed_says_so_in_one_line(light):
    ran = light("-m", "saycan_qt", "train", "--help")
    said = "error: `python -m saycan_qt train` needs the package torch, which is not installed; install"
    assert ran.returncode == 2 and ran.stderr.startswith(said) and ran.stderr.count("\n") == 1, ran.stderr
    assert light("-m", "saycan_qt", "robot", "--help").returncode == 0


def call(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["/somewhere/bin/saycan-qt", *arguments])
    try:
        return main()
    except SystemExit as end:
        return end.code


def test_the_script_is_declared():
    module, _, function = PROJECT["scripts"]["saycan-qt"].partition(":")
    assert getattr(importlib.import_module(module), function) is main


def test_help_lists_every_command_and_what_it_does(monkeypatch, capsys):
    assert call(monkeypatch, "--help") == 0
    listed = capsys.readouterr().out
    assert {"run", "serve", "robot", "collect", "pretrain", "train", "tune", "evaluate", "figures", "improve"} <= set(
        commands()
    )
    assert all(f"  {name} " in listed and what in listed for name, what in commands().items())
    assert not {"atomic", "options", "language"} & set(commands())  # no commands


def test_help_takes_no_time():
    code = "import sys; from saycan_qt.__main__ import main; sys.argv[1:] = ['-h']; main(); print(sorted(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"numpy", "grpc", "tyro", "torch"} & set(ast.literal_eval(ran.stdout.splitlines()[-1]))


def test_an_option_is_explained_beside_it_or_above_it():
    torn = []  # tyro gives what follows below to the next option, or to none
    for file in (file for name in (*PACKAGES, "benchmarks") for file in (ROOT / name).rglob("*.py")):
        lines = [*file.read_text().splitlines(), ""]
        for node in ast.walk(ast.parse("\n".join(lines))):
            if not isinstance(node, ast.ClassDef) or not node.name.endswith(("Config", "Options")):
                continue
            for field in (field for field in node.body if isinstance(field, ast.AnnAssign)):
                last, below = lines[field.end_lineno - 1 : field.end_lineno + 1]
                goes_on = re.match("    # ([a-z]+,?) ", below)  # with a word that the line had no room for
                full = goes_on and "  # " in last and len(f"{last} {goes_on[1]}") > 120
                if full or any("  # " in line for line in lines[field.lineno : field.end_lineno]):
                    torn.append(f"{file}:{field.lineno}")
    assert not torn


@pytest.mark.parametrize("name", sorted(commands()))
def test_each_command_is_called_what_was_typed(name, monkeypatch, capsys):
    assert call(monkeypatch, name, "--help") == 0
    assert f"usage: saycan-qt {name}" in capsys.readouterr().out


def test_a_wrong_command_names_the_nearest(monkeypatch, capsys):
    assert call(monkeypatch, "trian", "rt1") == 2
    assert capsys.readouterr().err.startswith(
        "error: no command 'trian'; did you mean 'train'? `saycan-qt --help` shows"
    )
    assert call(monkeypatch, "zzz") == 2
    assert "did you mean" not in capsys.readouterr().err


def test_what_a_command_refuses_is_its_exit_code(monkeypatch, capsys, tmp_path):
    assert call(monkeypatch, "report", str(tmp_path)) == 2
    assert call(monkeypatch, "train", "rt1", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "run")) == 2
    assert capsys.readouterr().err.count("error: ") == 2
