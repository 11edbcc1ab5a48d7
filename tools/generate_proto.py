"""Generates the Python code of the wire contract, or checks that the committed code is fresh.

Run by `make proto` and `make check` in an environment of its own, which holds the oldest supported
grpcio-tools: generated code refuses to run under a gRPC or protobuf older than its generator.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROTO = ROOT / "proto"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")


def generate(output: Path) -> None:
    """Write the code of every file under `proto/` below `output`. Raises CalledProcessError."""
    protos = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    outputs = {"python": "", "grpc_python": "", "mypy": "quiet:", "mypy_grpc": "quiet:"}
    # protoc looks for the mypy plugins on PATH; they lie beside the interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I", "."]
        + [f"--{plugin}_out={options}{output}" for plugin, options in outputs.items()]
        + protos,
        cwd=PROTO,
        env={**os.environ, "PATH": path},
        check=True,
    )


def generated(root: Path) -> dict[Path, bytes]:
    """The generated files under `root/relayswarm`, by path relative to `root`."""
    return {
        path.relative_to(root): path.read_bytes()
        for path in (root / "relayswarm").rglob("*_pb2*.py*")
        if path.name.endswith(SUFFIXES)
    }


def stale_files() -> list[Path]:
    """Generated files whose committed text is not what their .proto file gives."""
    with tempfile.TemporaryDirectory() as temporary:
        generate(Path(temporary))
        fresh = generated(Path(temporary))
    committed = generated(ROOT)
    return sorted(path for path in fresh | committed if fresh.get(path) != committed.get(path))


def main() -> int:
    """Return 0, or 1 when `--check` finds stale files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="change nothing, report stale files")
    if not parser.parse_args().check:
        generate(ROOT)
        return 0
    stale = stale_files()
    for path in stale:
        print(f"{path}: not what proto/ gives; run `make proto` and commit the result")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
