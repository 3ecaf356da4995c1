"""Print what one of saycan-qt's extras requires, as pip takes it.

    pip install --no-deps .                                         # or a wheel, on a computer that only drives
    pip install --no-warn-conflicts $(saycan-qt requires robot)     # pip would warn of all that is left out

`pip install '.[robot]'` would bring torch and mujoco too: no extra takes anything away. Only Python's own
modules are imported here, since no other is there yet.
"""

from __future__ import annotations

import argparse
import re
import sys
from importlib.metadata import PackageNotFoundError, metadata

DISTRIBUTION = "saycan-qt"


def requirements(extra: str) -> list[str]:
    """As installed, such as "numpy<3,>=2". Raises ValueError for an extra that there is not."""
    described = metadata(DISTRIBUTION)
    if extra not in (extras := described.get_all("Provides-Extra", [])):
        raise ValueError(f"saycan-qt has no extra {extra!r}; there are {', '.join(extras)}")
    ours = re.compile(rf"""(?P<what>[^;]+);\s*extra == ["']{re.escape(extra)}["']$""")
    return [found["what"].strip() for line in described.get_all("Requires-Dist", []) if (found := ours.match(line))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("extra", metavar="EXTRA", help="such as robot")
    try:
        print("\n".join(requirements(parser.parse_args().extra)))
    except PackageNotFoundError:
        print("error: saycan-qt is not installed here: `pip install --no-deps .` in its folder", file=sys.stderr)
        return 2
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
