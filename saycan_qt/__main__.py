"""All commands under one name.

saycan-qt run "bring me a snack"            # the same as `python -m saycan_qt.run "bring me a snack"`
saycan-qt --help                            # which commands there are
python -m saycan_qt run "bring me a snack"  # where the script is not on the PATH
"""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from pathlib import Path

PACKAGE = Path(__file__).parent
OURS = ("skills", "planners", "saycan_qt")


def commands() -> dict[str, str]:
    """Each command's name and what it does: the modules here that have a `main`, and the first lines of their texts.
    They are read and not imported, which would take seconds."""
    found = {}
    for path in sorted(PACKAGE.glob("[!_]*.py")):
        module = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in module.body):
            found[path.stem] = (ast.get_docstring(module) or "").partition("\n")[0]
    return found


def main() -> int:
    program = "python -m saycan_qt" if Path(sys.argv[0]).name == Path(__file__).name else "saycan-qt"
    given, known = sys.argv[1:], commands()
    if not given or given[0] in ("-h", "--help"):
        print(usage(program, known), file=sys.stdout if given else sys.stderr)
        return 0 if given else 2
    name = given[0]
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {nearest[0]!r}? " if nearest else ""
        print(f"error: no command {name!r}; {hint}`{program} --help` shows all {len(known)}", file=sys.stderr)
        return 2
    sys.argv = [f"{program} {name}", *given[1:]]
    try:
        return importlib.import_module(f"saycan_qt.{name}").main()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if not missing or missing in OURS:
            raise
        print(
            f"error: `{program} {name}` needs the package {missing}, which is not installed; "
            "install saycan-qt with its dependencies",
            file=sys.stderr,
        )
        return 2


def usage(program: str, known: dict[str, str]) -> str:
    width = max(map(len, known))
    lines = [f"usage: {program} COMMAND [OPTIONS]", ""]
    lines += [f"  {name:{width}}  {what}" for name, what in known.items()]
    return "\n".join([*lines, "", f"`{program} COMMAND --help` explains one."])


if __name__ == "__main__":
    sys.exit(main())
