"""Install the pack offline and run everything on a GPU machine, stage by stage: `python3 examples/gpu/run.py`.

Every stage has its own time limit; what it has written until then is kept. A stage that went well is not done again,
unless it is named with ``--again``. Needs nothing but Python 3.12, the packages in machine.txt, this checkout and the
pack that pack.py made. Without CUDA everything is gone through tiny, which measures nothing.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PATIENCE = 20.0  # seconds that a stage has to tidy up when its time is over
TAIL = 15  # lines of a failed stage's log that are shown
LEAST = 20.0  # seconds below which no stage is begun
TESTS = ("core/test_cuda.py", "core/test_triton.py", "core/test_no_sync.py", "trl/test_one_seed.py")
RESULTS = ("smoke_gpu.json", "smoke_gpu.png", "kernels_gpu.json", "kernels_gpu.png")
RUNS = [
    f"{framework}:{name}"
    for framework in ("trl", "verl")
    for name in ("gae", "grpo", "reinforce_pp", "remax")
]


@dataclass(frozen=True)
class Stage:
    """A command with a limit in seconds."""

    name: str
    seconds: float
    command: list[str]


def stages(options: argparse.Namespace) -> list[Stage]:
    """All of them in order; short ones first, so that little is lost when time runs out."""
    python, out = sys.executable, options.out.resolve()
    tiny = ["--tiny"] if options.tiny else []
    wheels = sorted(map(str, options.wheels.resolve().glob("*.whl")))
    pip = [
        python,
        *[
            "-m",
            "pip",
            "install",
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-compile",
            "--no-cache-dir",
            "--upgrade",
        ],
    ]
    pytest = [
        python,
        *["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-c"],
        str(ROOT / "pyproject.toml"),
    ]
    tests = [str(ROOT / "tests" / name) for name in TESTS]
    bench = [python, str(ROOT / "benchmarks/kernels_gpu.py"), *tiny, "--out", str(out)]
    smoke = [
        python,
        str(ROOT / "examples/digit_sort/gpu_smoke.py"),
        *tiny,
        "--out",
        str(options.work / "smoke"),
    ]
    return [
        Stage("install", 180, [*pip, "--target", str(site(options)), *wheels]),
        Stage("doctor", 60, [python, "-m", "rl_estimators", "doctor"]),
        Stage("tests", 300, [*pytest, *tests]),
        Stage("kernels", 300, bench),
        *(Stage(run, 150 if run.startswith("trl") else 240, [*smoke, "--runs", run]) for run in RUNS),
    ]


def site(options: argparse.Namespace) -> Path:
    """Where the pack is installed; Ray's workers find it by PYTHONPATH."""
    return options.work / "site"


def environment(options: argparse.Namespace) -> dict[str, str]:
    """What the stages have in their environment."""
    paths = [str(site(options)), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONUNBUFFERED": "1",
        "TRITON_CACHE_DIR": str(options.work / "triton"),
    }


def run(stage: Stage, seconds: float, environment: dict[str, str], log: Path) -> str:
    """Run a stage into its log and return "ok", or in what way it ended."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            stage.command,
            env=environment,
            cwd=log.parent,  # not the checkout, whose own rl_estimators would stand before the installed one
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            stop(process)
            return f"stopped after {seconds:.0f} s"
        except BaseException:
            stop(process)
            raise
    return "ok" if status == 0 else f"failed with exit status {status}"


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a stage to end, which then ends all that it started; after a while end its process group by force."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def go(
    chosen: Sequence[Stage],
    options: argparse.Namespace,
    say: Callable[[str], None] = print,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Run the chosen stages within the budget and return what became of each, also of those of earlier calls."""
    record = options.work / "run.json"
    found: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {}
    begin = clock()
    for stage in chosen:
        if found.get(stage.name, {}).get("state") == "ok" and not options.again:
            say(f"{stage.name}: done before")
            continue
        left = options.budget - (clock() - begin)
        if left < LEAST:
            found[stage.name] = {"state": "no time left", "seconds": 0.0, "limit": stage.seconds}
            say(f"{stage.name}: no time left")
            continue
        since, log = clock(), options.work / f"{stage.name.replace(':', '-')}.log"
        state = run(stage, min(stage.seconds, left), environment(options), log)
        found[stage.name] = {"state": state, "seconds": clock() - since, "limit": stage.seconds}
        say(f"{stage.name}: {state}, {clock() - since:.0f} s")
        if state != "ok":
            say("\n".join(log.read_text(errors="replace").splitlines()[-TAIL:]))
        collect(found, options)
        if stage.name == "install" and state != "ok":
            break
    collect(found, options)
    return found


def collect(found: dict[str, Any], options: argparse.Namespace) -> None:
    """Write what became of the stages, and bring results and logs together in the folder for them."""
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(found, indent=1) + "\n"
    for place in (options.work / "run.json", options.out / "run.json"):
        place.write_text(text)
    for name in RESULTS:
        if (made := options.work / "smoke" / name).exists():
            shutil.copy(made, options.out / name)
    logs = sorted(options.work.glob("*.log"))
    parts = [f"===== {log.stem}\n{log.read_text(errors='replace')}" for log in logs]
    (options.out / "logs.txt").write_text("\n".join(parts))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--stages", default="all", help="names, comma-separated; trl and verl stand for all of theirs"
    )
    parser.add_argument(
        "--wheels", type=Path, default=ROOT / ".gpu-pack", help="the folder that pack.py filled"
    )
    parser.add_argument(
        "--work", type=Path, default=ROOT / ".gpu-run", help="for what is installed, logs, models"
    )
    parser.add_argument("--out", type=Path, help="for results, few files in one folder (--work's results)")
    parser.add_argument(
        "--budget", type=float, default=1800.0, help="seconds for all stages together (%(default)s)"
    )
    parser.add_argument("--again", action="store_true", help="do the stages also if they went well before")
    parser.add_argument(
        "--tiny", action="store_true", help="the small rehearsal on the CPU, also where there is CUDA"
    )
    parser.add_argument("--list", action="store_true", help="only list the stages")
    options = parser.parse_args(arguments)
    options.work = options.work.resolve()
    options.out = (options.out or options.work / "results").resolve()
    options.chosen = choose(stages(options), options.stages, parser)
    return options


def choose(known: Sequence[Stage], names: str, parser: argparse.ArgumentParser) -> list[Stage]:
    """The stages by their names, in their own order."""
    wanted = set(names.split(","))
    chosen = [one for one in known if wanted & {"all", one.name, one.name.partition(":")[0]}]
    unknown = wanted - {"all"} - {part for one in known for part in (one.name, one.name.partition(":")[0])}
    if unknown:
        expected = ", ".join(["all", "trl", "verl", *(one.name for one in known)])
        parser.error(f"--stages has {', '.join(sorted(unknown))}, expected some of {expected}")
    return chosen


def main(arguments: Sequence[str]) -> int:
    """Run the stages; return 0 if all that were chosen went well."""
    options = parse(arguments)
    if options.list:
        for stage in options.chosen:
            print(f"{stage.name:18s} at most {stage.seconds:4.0f} s")
        return 0
    installs = any(one.name == "install" for one in options.chosen)
    if installs and not any(options.wheels.glob("rl_estimators-*.whl")):
        print(
            f"{options.wheels} has no pack: python examples/gpu/pack.py --out {options.wheels}",
            file=sys.stderr,
        )
        return 2
    options.work.mkdir(parents=True, exist_ok=True)
    found = go(options.chosen, options)
    print(f"results: {options.out}")
    return 0 if all(found[one.name]["state"] == "ok" for one in options.chosen if one.name in found) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
