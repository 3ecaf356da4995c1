"""Imports run one way, and the client stays light enough for a robot's small computer."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MAY_IMPORT = {
    "skills": {"skills"},
    "planners": {"skills", "planners"},
    "saycan_qt": {"skills", "planners", "saycan_qt"},
}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.split(".")[0] if node.level == 0 else path.relative_to(ROOT).parts[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_one_way(package):
    forbidden = set(MAY_IMPORT) - MAY_IMPORT[package] | ({"torch", "mujoco"} if package == "skills" else set())
    files = list((ROOT / package).rglob("*.py"))
    assert files and not [(str(path), name) for path in files for name in imports(path) if name in forbidden]


def test_the_client_loads_neither_torch_nor_mujoco():
    code = "import sys, skills.client; print({'torch', 'mujoco', 'planners', 'saycan_qt'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "set()"
