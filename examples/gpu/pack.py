"""Gather the wheels that a GPU machine without a package registry lacks: `python examples/gpu/pack.py`.

Starts from this package and follows requirements, skipping what the machine has (`machine.txt`) and what nobody imports
in the runs (`LEFT_OUT`). Releases are those of `constraints.txt`. Ray is brought down to its core. Prints every wheel's
size and the sum, and ends with status 1 if the sum exceeds `LIMIT_MB`.
"""

import argparse
import email
import json
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(HERE))
import ray_core  # noqa: E402 (beside this file)

LIMIT_MB = 60
EXTRAS = {"verl", "trl", "fast", "see"}
PYTHON = "3.12"
MARKERS = {
    "implementation_name": "cpython",
    "implementation_version": f"{PYTHON}.3",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_release": "",
    "platform_system": "Linux",
    "platform_version": "",
    "python_full_version": f"{PYTHON}.3",
    "python_version": PYTHON,
    "sys_platform": "linux",
}
PLATFORMS = [f"manylinux_2_{minor}_x86_64" for minor in range(39, 4, -1)] + [
    f"manylinux{year}_x86_64" for year in (2014, 2010, 1)
]
LEFT_OUT = {  # asked for, and imported by nothing that runs here
    "mathruler": "rewards for mathematics",
    "nvtx": "marks for a profiler that is not on the machine",
    "py-spy": "Ray's dashboard",
    "pylatexenc": "rewards for mathematics",
    "pytest-asyncio": "verl's own tests",
    "pytest-rerunfailures": "verl's own tests",
    "qwen-vl-utils": "images",
    "torchcodec": "video",
    "wandb": "a logger that needs a network",
}
LEFT_OUT_EXTRAS = {"ray": {"default"}}  # the dashboard

Requires = Callable[[str], Iterable[str]]


@dataclass
class Choice:
    """What to take along.

    Attributes:
        wanted: names, in the order they were met.
        conflicts: sentences: who wants another release than the machine has.
    """

    wanted: list[str] = field(default_factory=list)
    conflicts: list[str] = field(default_factory=list)


def read_machine(text: str) -> dict[str, Version | None]:
    """Return the machine's packages with their releases, None where not known."""
    lines = (line.partition("#")[0].strip() for line in text.splitlines())
    pairs = (line.partition("==")[::2] for line in lines if line)
    return {canonicalize_name(name): Version(release) if release else None for name, release in pairs}


def read_pins(text: str) -> dict[str, str]:
    """Return the releases that a constraints file pins for the machine's Python."""
    pins = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            one = Requirement(line)
            if one.marker is None or one.marker.evaluate(MARKERS):
                (pin,) = one.specifier
                pins[canonicalize_name(one.name)] = pin.version
    return pins


def choose(
    root: str, extras: Iterable[str], requires: Requires, machine: Mapping[str, Version | None]
) -> Choice:
    """Follow requirements from ``root`` on.

    Args:
        root: The package to begin with; it is taken along.
        extras: Of the root.
        requires: The ``Requires-Dist`` lines of a package by its name.
        machine: What need not be taken along.
    """
    choice, seen = Choice(), set()
    queue = [(canonicalize_name(root), frozenset(extras))]
    while queue:
        name, wanted = queue.pop(0)
        wanted -= LEFT_OUT_EXTRAS.get(name, set())
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        if name not in choice.wanted:
            choice.wanted.append(name)
        for line in requires(name):
            one = Requirement(line)
            if not _applies(one, wanted) or canonicalize_name(one.name) in LEFT_OUT:
                continue
            if (other := canonicalize_name(one.name)) not in machine:
                queue.append((other, frozenset(one.extras)))
            elif (release := machine[other]) is not None and not one.specifier.contains(
                release, prereleases=True
            ):
                choice.conflicts.append(f"{name} wants {other}{one.specifier}, the machine has {release}")
    return choice


def _applies(one: Requirement, extras: frozenset[str]) -> bool:
    return one.marker is None or any(
        one.marker.evaluate({**MARKERS, "extra": extra}) for extra in ("", *extras)
    )


def metadata(wheel: Path) -> list[str]:
    """Return the ``Requires-Dist`` lines of a wheel."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
        return email.message_from_bytes(file.read(name)).get_all("Requires-Dist", [])


def fetch(name: str, release: str, folder: Path) -> Path:
    """Have pip download the wheel of a package for the machine, or build it where there is only the source.

    Raises:
        SystemExit: neither worked, or what was built is for this machine alone.
    """
    pip, one = [sys.executable, "-m", "pip"], [f"--dest={folder}", f"{name}=={release}"]
    machine = ["--python-version", PYTHON, "--implementation", "cp"]
    machine += [
        *(f"--abi={abi}" for abi in ("cp312", "abi3", "none")),
        *(f"--platform={p}" for p in PLATFORMS),
    ]
    before = {*folder.glob("*.whl")}
    download = [*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", *machine, *one]
    done = subprocess.run(download, capture_output=True, text=True)
    if done.returncode:
        build = [*pip, "wheel", "--quiet", "--no-deps", f"--wheel-dir={folder}", one[-1]]
        done = subprocess.run(build, capture_output=True, text=True)
    new = {*folder.glob("*.whl")} - before
    if done.returncode or len(new) != 1:
        raise SystemExit(f"pack: pip could not fetch {name}=={release}:\n{done.stderr.strip()}")
    wheel = new.pop()
    if "download" not in done.args and not wheel.name.endswith("-none-any.whl"):
        raise SystemExit(
            f"pack: {name}=={release} has no wheel for the machine, and {wheel.name} is for this one"
        )
    return wheel


def build_ours(folder: Path) -> Path:
    """Build this package's wheel from a copy of the checkout, in which nothing is left behind."""
    with tempfile.TemporaryDirectory() as copy:
        source = Path(copy) / "source"
        ignored = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "tests")
        shutil.copytree(ROOT, source, ignore=ignored)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder)]
        subprocess.run([*command, str(source)], check=True)
    (wheel,) = folder.glob("rl_estimators-*.whl")
    return wheel


def pack(folder: Path) -> Choice:
    """Fill ``folder`` with wheels."""
    machine = read_machine((HERE / "machine.txt").read_text())
    pins = read_pins((ROOT / "constraints.txt").read_text())
    wheels = {"rl-estimators": build_ours(folder)}

    def requires(name: str) -> list[str]:
        if name not in wheels:
            if name not in pins:
                raise SystemExit(f"pack: {name} has no line in constraints.txt")
            print(f"pack: {name} {pins[name]}", flush=True)
            wheels[name] = fetch(name, pins[name], folder)
        return metadata(wheels[name])

    choice = choose("rl-estimators", EXTRAS, requires, machine)
    big = wheels["ray"]
    print(f"pack: bringing Ray down to its core, from {big.stat().st_size / 1e6:.1f} MB", flush=True)
    ray_core.shrink(big, folder)
    big.unlink()
    return choice


def total(folder: Path) -> tuple[str, float]:
    """Return a line for each file, the largest first, and the sum in MB (10^6 bytes)."""
    files = sorted((file for file in folder.iterdir()), key=lambda file: -file.stat().st_size)
    sizes = [file.stat().st_size / 1e6 for file in files]
    return "\n".join(f"{mb:7.2f} MB  {file.name}" for mb, file in zip(sizes, files, strict=True)), sum(sizes)


def main(arguments: Sequence[str]) -> int:
    """Pack, and say what it comes to."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=ROOT / ".gpu-pack", help="folder for the wheels, emptied first"
    )
    parser.add_argument("--size", action="store_true", help="only say what the folder comes to")
    options = parser.parse_args(arguments)
    out = options.out.resolve()
    if not options.size:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        choice = pack(out)
        (out / "pack.json").write_text(
            json.dumps(
                {"wanted": choice.wanted, "conflicts": choice.conflicts, "left_out": LEFT_OUT}, indent=1
            )
        )
        for conflict in choice.conflicts:
            print(f"pack: {conflict}")
    elif not out.is_dir():
        parser.error(f"--size: there is no folder {out}")
    lines, mb = total(out)
    print(f"{lines}\n{mb:7.2f} MB in {out}, of at most {LIMIT_MB}")
    return 0 if mb <= LIMIT_MB else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
