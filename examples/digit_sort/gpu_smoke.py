"""Train with four estimators in verl and in TRL, on a GPU if there is one: `make smoke-gpu`, or run this file.

The task is that of `smoke.py`. With CUDA the model has 21 million parameters, computes in bfloat16, and all rewards
have to rise. Without, the same is gone through with the tiny model in a few steps on the CPU, to see that it runs.
"""

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":  # run as a script, the folder is not yet known as the package it is
    sys.dont_write_bytecode = True
    sys.path[0] = str(HERE.parent)

from digit_sort import requirements, smoke  # noqa: E402 (after the path is right)
from digit_sort.progress import Progress  # noqa: E402

if TYPE_CHECKING:
    from digit_sort.processes import ProcessTree
    from digit_sort.where import Setup

DEFAULT_OUT = HERE.parents[1] / ".smoke-gpu"
ANSWERS = {"gae": 1, "grpo": 8, "reinforce_pp": 1, "remax": 1}  # estimators, and answers to each prompt
RUNS = [f"{framework}:{estimator}" for framework in ("verl", "trl") for estimator in ANSWERS]
STEPS, FEW = 40, 4
JUDGED = 20  # steps from which on the reward has to have risen
RESULTS = "smoke_gpu.json"
ASSETS = "assets"  # what a child may make, beside the runs in TRL


def main(arguments: Sequence[str]) -> int:
    """Do the runs that have not been done, write the results of all; return 0 if every reward rose that should."""
    options = parse(arguments)
    if (problem := requirements.problem()) is not None:
        print(problem, file=sys.stderr)
        return 2
    out = options.out.resolve()
    os.environ |= {"MPLCONFIGDIR": str(out / "cache"), "HF_HUB_OFFLINE": "1"}
    from digit_sort import gpu_report, where

    if options.merge:
        return merge(options.merge, out)
    setup = where.CPU if options.tiny else where.best()
    steps = options.steps or (FEW if setup == where.CPU else STEPS)
    if options.child:
        be_child(options, steps, out, setup)
        return 0
    print(on_what(setup, steps))
    try:
        results = go(options, out, steps, setup)
    except smoke.SmokeError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing is left running", file=sys.stderr)
        return 130
    print(f"\n{gpu_report.summary(results['runs'])}\n\nthe numbers: {out / RESULTS}; the curves beside them")
    if steps < JUDGED:
        print(f"no verdict: {steps} steps are too few for the reward to rise")
        return 0
    verdicts = {name: gpu_report.judge(results["runs"][name]) for name in options.runs}
    for name, (_, sentence) in verdicts.items():
        print(f"{name}: {sentence}")
    return 0 if all(rose for rose, _ in verdicts.values()) else 1


def merge(paths: Sequence[Path], out: Path) -> int:
    """Bring results of several calls together; return the exit status."""
    from digit_sort import gpu_report

    try:
        results = gpu_report.merged(paths)
    except (OSError, ValueError, KeyError) as error:
        print(f"--merge: {error}", file=sys.stderr)
        return 2
    out.mkdir(parents=True, exist_ok=True)
    gpu_report.write(results, out / RESULTS)
    gpu_report.plot(results, (out / RESULTS).with_suffix(".png"))
    print(gpu_report.summary(results["runs"]))
    return 0


def on_what(setup: "Setup", steps: int) -> str:
    """Say what will run."""
    if setup.device == "cpu":
        return f"CUDA is not used: the tiny model on the CPU, {steps} steps a run; its times say nothing of a GPU"
    return f"on CUDA, in bfloat16, verl's rollouts by {setup.engine}: {steps} steps a run"


def go(options: argparse.Namespace, out: Path, steps: int, setup: "Setup") -> dict[str, Any]:
    """Do the runs one after another and write the results after each.

    Raises:
        SmokeError: a run failed; those before it are kept, and not done again the next time.
    """
    from digit_sort import gpu_report, machine

    out.mkdir(parents=True, exist_ok=True)
    settings = {"device": setup.device, "engine": setup.engine, "steps": steps, "seed": options.seed}
    with Progress(sys.stdout) as progress:
        progress.show("looking for the model")
        model, data = assets(out, steps, options, progress, setup)
        settings["parameters"] = parameters(model)
        results: dict[str, Any] = {"machine": machine.describe(), "settings": settings}
        results["runs"] = {} if options.again else gpu_report.read(out / RESULTS, results)
        for name in options.runs:
            if name in results["runs"]:
                continue
            progress.show(f"{name} begins")
            folder = out / name.replace(":", "-")
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            if name.startswith("verl"):
                done = in_verl(name, steps, options, folder, model, data, progress, setup)
            else:
                done = in_trl(name, steps, options, folder, progress, setup)
            results["runs"][name] = done
            gpu_report.write(results, out / RESULTS)
            gpu_report.plot(results, (out / RESULTS).with_suffix(".png"))
    return results


def assets(
    out: Path, steps: int, options: argparse.Namespace, progress: Progress, setup: "Setup"
) -> tuple[Path, tuple[Path, Path]]:
    """Return model and data, made unless they are there already from the same seed and size.

    They are made in a process of its own: one that has used CUDA holds memory on the GPU until it ends.

    Raises:
        SmokeError: making them failed.
    """
    made, wanted = out / "model" / "made.json", {"seed": options.seed, "size": str(setup.size)}
    if not (made.exists() and json.loads(made.read_text()) == wanted):
        shutil.rmtree(out / "model", ignore_errors=True)
        child(ASSETS, steps, options, out, progress, setup)
        made.write_text(json.dumps(wanted))
    return out / "model", (out / "data" / "train.parquet", out / "data" / "val.parquet")


def parameters(model: Path) -> int:
    """Return how many numbers the model has; tied ones count once."""
    from safetensors import safe_open

    with safe_open(model / "model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118 (no mapping)
    return sum(map(math.prod, shapes))


def in_verl(
    name: str,
    steps: int,
    options: argparse.Namespace,
    folder: Path,
    model: Path,
    data: tuple[Path, Path],
    progress: Progress,
    setup: "Setup",
) -> dict[str, Any]:
    """Run verl's main_ppo with our estimator and return what the report needs."""
    from digit_sort import parts, report

    estimator, begin = name.partition(":")[2], progress.seconds
    outcome = smoke.train_in_verl(
        f"rle_{estimator}", steps, folder, options.overrides, options.seed, ANSWERS[estimator], model, data,
        progress, setup,
    )  # fmt: skip
    reserved = [row.get("perf/max_memory_reserved_gb", 0.0) for row in outcome.rows]
    return {
        "rewards": [row[report.REWARD] for row in outcome.rows],
        "parts": parts.per_step([parts.of_verl(row) for row in outcome.rows]),
        "seconds": progress.seconds - begin,
        "host_bytes": outcome.peak_bytes,
        "device_bytes": outcome.device_bytes,
        "reserved_bytes": int(max(reserved) * 2**30),
    }


def in_trl(
    name: str, steps: int, options: argparse.Namespace, folder: Path, progress: Progress, setup: "Setup"
) -> dict[str, Any]:
    """Run our trainer for TRL, in a process whose memory is its own, and return what the report needs.

    Raises:
        SmokeError: it failed, or said nothing for a long time.
    """
    begin = progress.seconds
    tree = child(name, steps, options, folder, progress, setup)
    found: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return found | {
        "seconds": progress.seconds - begin,
        "host_bytes": tree.peak_bytes,
        "device_bytes": tree.device_bytes,
    }


def child(
    name: str, steps: int, options: argparse.Namespace, folder: Path, progress: Progress, setup: "Setup"
) -> "ProcessTree":
    """Run this file with ``--child`` in ``folder``, show what it says, and return the process, which has ended.

    Raises:
        SmokeError: it failed, or said nothing for a long time.
    """
    from digit_sort.processes import ProcessTree

    log = folder / "child.log"
    command = [sys.executable, str(Path(__file__).resolve()), "--child", name, "--out", str(folder)]
    command += ["--steps", str(steps), "--seed", str(options.seed)]
    command += ["--tiny"] if setup.device == "cpu" else []
    # One GPU: with several in sight, transformers' Trainer would spread the model over them.
    environment = dict(os.environ)
    if setup.device != "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    with ProcessTree(command, environment, folder, log) as tree:
        status, said, news = None, "", time.monotonic()
        while status is None and time.monotonic() - news < smoke.PATIENCE:
            status = tree.wait(smoke.MEASURE_EVERY)
            tree.measure()
            if (text := log.read_text(errors="replace")) != said:
                said, news = text, time.monotonic()
                progress.show(f"{name}: {said.splitlines()[-1]}")
    if status != 0:
        tail = [*said.splitlines()[-smoke.TAIL_LINES :], *_end_of(folder / "trl.log")]
        end = (
            f"said nothing for {smoke.PATIENCE:.0f} s"
            if status is None
            else f"ended with exit status {status}"
        )
        raise smoke.SmokeError("\n".join([*tail, f"{name} {end}; its logs: {folder}"]))
    return tree


def be_child(options: argparse.Namespace, steps: int, out: Path, setup: "Setup") -> None:
    """Make the assets in ``out``, or train in TRL there and write what the report needs into ``result.json``."""
    if options.child == ASSETS:
        with Progress(sys.stdout) as progress:
            smoke.build_assets(out, options.seed, progress, setup)
    else:
        train_in_trl(options.child, steps, options.seed, out, setup)


def train_in_trl(name: str, steps: int, seed: int, folder: Path, setup: "Setup") -> None:
    """Train, say each step, and write what the report needs into ``result.json``."""
    import torch

    from digit_sort import parts, report, trl_run
    from digit_sort.progress import describe_step

    estimator, begin = name.partition(":")[2], time.monotonic()
    clocks: list[parts.Clock] = []

    @contextmanager
    def watch(trainer: Any) -> Iterator[None]:
        with parts.watch_trl(trainer) as clock:
            clocks.append(clock)
            yield

    def tell(rewards: list[float]) -> None:
        if rewards:
            print(describe_step(rewards, steps, time.monotonic() - begin), file=sys.__stdout__, flush=True)

    rows = trl_run.train(
        estimator, steps, seed, ANSWERS[estimator], folder.parent / "model", folder, tell, setup, watch
    )
    result = {"rewards": [row[report.REWARD] for row in rows], "parts": parts.per_step(clocks[0].steps)}
    result["reserved_bytes"] = torch.cuda.max_memory_reserved() if setup.device == "cuda" else 0
    (folder / "result.json").write_text(json.dumps(result))


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; what follows ``--`` are hydra overrides for verl."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--runs", type=lambda text: text.split(","), default=RUNS, help=f"some of {','.join(RUNS)} (all)"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="the tiny model on the CPU, even where there is CUDA"
    )
    parser.add_argument("--steps", type=int, help=f"training steps of a run ({STEPS}; {FEW} on the CPU)")
    parser.add_argument("--seed", type=int, default=0, help="for weights, data and sampling (%(default)s)")
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder for all that is written")
    parser.add_argument("--again", action="store_true", help="do also what is in the results already")
    parser.add_argument(
        "--merge",
        type=Path,
        nargs="+",
        metavar="FILE",
        help=f"only bring several {RESULTS} together in --out",
    )
    parser.add_argument("--child", choices=[ASSETS, *RUNS], help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", help="hydra overrides for verl, after --")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.runs if name not in RUNS]:
        parser.error(f"--runs has {', '.join(unknown)}, expected some of {', '.join(RUNS)}")
    return options


def _end_of(log: Path) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-smoke.TAIL_LINES :] if log.exists() else []


if __name__ == "__main__":
    smoke.end_when_asked()
    sys.exit(main(sys.argv[1:]))
