"""Bring Ray's wheel down to what its core needs: from about 75 MB to 17.

What is taken out are the libraries on top of the core (RLlib, Serve, Tune, Train, Data), the Java and C++ front ends, the
dashboard's web page and the cloud providers of the autoscaler; binaries lose their symbols. What is left is a wheel
that pip installs, with its RECORD made anew and a build tag that tells it from the real one.
"""

import base64
import hashlib
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

__all__ = ["BUILD", "shrink", "unneeded"]

BUILD = "1core"  # a wheel's build tag begins with a digit
AUTOSCALER = "ray/autoscaler"
FOLDERS = (
    *(
        f"ray/{name}"
        for name in ("cpp", "data", "jars", "llm", "rllib", "serve", "train", "tune", "workflow")
    ),
    "ray/dashboard/client",
    "ray/util/dask",
    *(f"{AUTOSCALER}/{name}" for name in ("aws", "azure", "gcp")),
    *(f"{AUTOSCALER}/_private/{name}" for name in ("_azure", "aws", "gcp", "vsphere")),
)
BINARIES = ("ray/core/src/ray/raylet/raylet", "ray/core/src/ray/gcs/gcs_server")


def unneeded(name: str) -> bool:
    """Whether a file of the wheel is one that Ray's core does without."""
    return name.startswith(tuple(f"{folder}/" for folder in FOLDERS)) or name.endswith((".map", ".pyc"))


def shrink(wheel: Path, folder: Path) -> Path:
    """Write the smaller wheel into ``folder`` and return its path.

    Raises:
        RuntimeError: there is no `strip` here, which is in the package binutils.
    """
    if shutil.which("strip") is None:
        raise RuntimeError(
            "there is no 'strip' here to take the symbols out of Ray's binaries: install binutils"
        )
    name, release, *tags = wheel.stem.split("-")
    smaller = folder / f"{'-'.join([name, release, BUILD, *tags])}.whl"
    info = f"{name}-{release}.dist-info"
    record = []
    with (
        zipfile.ZipFile(wheel) as old,
        # LZMA takes a fifth off what deflate leaves; Python, and so pip, reads it as well.
        zipfile.ZipFile(smaller, "w", zipfile.ZIP_LZMA) as new,
        tempfile.TemporaryDirectory() as scratch,
    ):
        for entry in old.infolist():
            if entry.is_dir() or unneeded(entry.filename) or entry.filename == f"{info}/RECORD":
                continue
            content = old.read(entry)
            if entry.filename in BINARIES or entry.filename.endswith(".so"):
                content = _stripped(content, Path(scratch) / "binary")
            if entry.filename == f"{info}/WHEEL":
                content = content.rstrip() + f"\nBuild: {BUILD}\n".encode()
            kept = zipfile.ZipInfo(entry.filename, entry.date_time)
            kept.external_attr, kept.compress_type = entry.external_attr, zipfile.ZIP_LZMA
            new.writestr(kept, content)
            record.append(f"{_quoted(entry.filename)},sha256={_digest(content)},{len(content)}")
        new.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]) + "\n")
    return smaller


def _stripped(content: bytes, scratch: Path) -> bytes:
    """The binary without symbols that only a debugger reads; as it is where strip cannot read it."""
    scratch.write_bytes(content)
    done = subprocess.run(["strip", "--strip-unneeded", str(scratch)], capture_output=True)
    return scratch.read_bytes() if done.returncode == 0 else content


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def _quoted(name: str) -> str:
    return f'"{name}"' if "," in name else name
