"""Generate the stubs in skills/v1 from protos/skills/v1/skills.proto.

    python -m venv /tmp/stubs && /tmp/stubs/bin/pip install grpcio-tools==1.78.0 pyyaml numpy
    /tmp/stubs/bin/python -m skills.generate          # from the root of a checkout

Generated code refuses a protobuf runtime older than its compiler. 1.78.0 compiles for protobuf 6.31.1, so the stubs
run on every protobuf this project allows; newer tools would need a newer runtime. An environment of its own, because
grpcio-tools 1.78.0 needs protobuf 6 and grpcio-health-checking 1.85 needs protobuf 7.
"""

from __future__ import annotations

import sys
from importlib import metadata, resources
from pathlib import Path

TOOLS = "1.78.0"  # of grpcio-tools
ROOT = Path(__file__).resolve().parent.parent
PROTO = "skills/v1/skills.proto"


def generate(out: Path) -> list[Path]:
    """Write the stubs under `out` and return their paths."""
    from grpc_tools import protoc

    arguments = [f"-I{ROOT / 'protos'}", f"-I{resources.files('grpc_tools') / '_proto'}"]
    arguments += [f"--python_out={out}", f"--pyi_out={out}", f"--grpc_python_out={out}", PROTO]
    if protoc.main(["protoc", *arguments]) != 0:
        raise RuntimeError(f"protoc refused protos/{PROTO}")
    return sorted((out / PROTO).parent.glob("skills_pb2*"))


if __name__ == "__main__":
    try:
        installed = metadata.version("grpcio-tools")
        if installed != TOOLS:
            sys.exit(f"skills.generate: grpcio-tools is {installed}; run in an environment with grpcio-tools=={TOOLS}")
        for path in generate(ROOT):
            print(path.relative_to(ROOT))
    except (RuntimeError, metadata.PackageNotFoundError) as error:
        sys.exit(f"skills.generate: {error}")
