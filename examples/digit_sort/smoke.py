"""Train a tiny model with verl, then with TRL, and see the rewards rise: `make smoke`, or run this file."""

import argparse
import os
import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":  # run as a script, the folder is not yet known as the package it is
    sys.dont_write_bytecode = True
    sys.path[0] = str(HERE.parent)

from digit_sort import report, requirements  # noqa: E402 (after the path is right)
from digit_sort.progress import Progress, describe_step  # noqa: E402

# What needs torch, verl or psutil is imported in the functions: first comes the check that they are there.
if TYPE_CHECKING:
    from digit_sort.processes import ProcessTree
    from digit_sort.where import Setup

DEFAULT_OUT = HERE.parents[1] / ".smoke"
STEPS = 40
TAIL_LINES = 40
MEASURE_EVERY = 3.0  # seconds between two looks at the memory, each of which costs some 0.1 s
PATIENCE = 300.0  # seconds without a step after which the run is given up
ATTEMPTS, PORT_LOST = (
    2,
    "EADDRINUSE",
)  # runs of the command at most, and what its log has where another is worth it
LONGEST_SOCKET = 103  # bytes in the path of a unix socket: 103 on macOS, 107 on Linux
RAY_BELOW = len("/ray/session_2000-01-01_00-00-00_000000_0000000/sockets/plasma_store.0")
PHASES = {  # what verl's log says: what is happening from then on
    "Started a local Ray instance": "starting verl's trainer",
    "create worker group": "loading the model into the actor and the reference",
    "actor and ref model engine initialized": "starting the rollout engine",
    "ready to fit": "starting the agent loop",
    "Training Progress": "training: step 1 is running",
}


class SmokeError(RuntimeError):
    """The training command failed; the message shows the end of its log."""


@dataclass(frozen=True)
class Outcome:
    """What a run gave: verl's metrics per step, where the time went, the most memory seen, on the host and on the GPU."""

    rows: list[dict[str, Any]]
    seconds: dict[str, float]
    peak_bytes: int
    device_bytes: int = 0


def run(
    estimator: str = "reinforce_pp",
    steps: int = STEPS,
    out: str | Path = DEFAULT_OUT,
    overrides: Sequence[str] = (),
    seed: int = 0,
    answers: int = 1,
) -> list[dict[str, Any]]:
    """Train and return verl's metrics, one dict per step with its number under ``step``.

    Everything the run makes lies in ``out``: the model and the data, ``command.sh``, ``verl.log``,
    ``metrics.jsonl``, ``reward.png``. No judgement on the reward is made.

    Args:
        estimator: a name of verl's advantage estimators, ours among them.
        steps: training steps, of 128 answers each.
        out: the folder to write to; made if missing.
        overrides: hydra overrides appended to verl's command line.
        seed: seeds weights, data, order and sampling.
        answers: to each prompt; estimators that compare answers need 2, 4, 8, ... A step has 128 in all.

    Raises:
        SmokeError: verl failed, or finished fewer steps than asked for.
    """
    with Progress(sys.stdout) as progress:
        return execute(estimator, steps, Path(out).resolve(), overrides, seed, answers, progress).rows


def execute(
    estimator: str,
    steps: int,
    out: Path,
    overrides: Sequence[str],
    seed: int,
    answers: int,
    progress: Progress,
) -> Outcome:
    """Do what `run` describes and also tell where time and memory went."""
    out.mkdir(parents=True, exist_ok=True)
    progress.show("importing torch and transformers")
    model, data = build_assets(out, seed, progress)
    outcome = train_in_verl(estimator, steps, out, overrides, seed, answers, model, data, progress)
    report.plot({"verl": outcome.rows}, estimator, out / "reward.png")
    shutil.rmtree(out / "scratch", ignore_errors=True)  # matplotlib has written there
    return outcome


def train_in_verl(
    estimator: str,
    steps: int,
    out: Path,
    overrides: Sequence[str],
    seed: int,
    answers: int,
    model: Path,
    data: tuple[Path, Path],
    progress: Progress,
    setup: "Setup | None" = None,
) -> Outcome:
    """Run verl in ``out``, which is there, from this model on this data.

    Raises:
        SmokeError: verl failed, or finished fewer steps than asked for.
    """
    from digit_sort.command import training_command, training_environment
    from digit_sort.where import CPU

    setup = setup or CPU
    scratch = out / "scratch"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    ray = ray_folder(scratch)
    try:
        command = [*training_command(estimator, steps, seed, answers, model, data, out, setup), *overrides]
        environment = training_environment(scratch, ray, out / "metrics.jsonl", setup)
        outcome = train(command, environment, out, steps, progress, setup)
    finally:
        if ray != scratch:
            shutil.rmtree(ray, ignore_errors=True)
    shutil.rmtree(scratch, ignore_errors=True)  # after a failure it stays: Ray's own logs are in it
    return outcome


def train_in_trl(
    options: argparse.Namespace, out: Path, verl: Outcome, progress: Progress
) -> list[dict[str, Any]] | str:
    """Do the same in TRL, beginning with the same model, and draw both; or return why there is nothing to do.

    Raises:
        SmokeError: our trainer refused the estimator with these options.
    """
    from digit_sort import trl_run
    from rl_estimators.errors import EstimatorError

    if (reason := trl_run.unavailable(options.estimator)) is not None:
        return reason
    begin = progress.seconds
    progress.show("importing TRL")

    def tell(rewards: list[float]) -> None:
        if rewards:
            progress.show("TRL: " + describe_step(rewards, options.steps, progress.seconds - begin))

    try:
        rows = trl_run.train(
            options.estimator, options.steps, options.seed, options.answers, out / "model", out, tell
        )
    except EstimatorError as error:
        raise SmokeError(f"TRL: {error}") from error
    verl.seconds["TRL"] = progress.seconds - begin
    report.plot({"verl": verl.rows, "TRL": rows}, options.estimator, out / "reward.png")
    return rows


def build_assets(
    out: Path, seed: int, progress: Progress, setup: "Setup | None" = None
) -> tuple[Path, tuple[Path, Path]]:
    """Write data, tokenizer and warmed-up model; return the model's path and those of both data files."""
    from transformers.utils import logging

    from digit_sort import model, task
    from digit_sort.where import CPU

    logging.disable_progress_bar()  # it would run through our own line

    def tell(step: int, steps: int) -> None:
        if step % 50 == 0:
            progress.show(f"teaching the model by examples: step {step} of {steps}")

    data = task.write(out / "data", seed)
    setup = setup or CPU
    model.build(out / "model", seed, tell, setup.size, setup.device)
    return out / "model", data


def train(
    command: list[str],
    environment: dict[str, str],
    out: Path,
    steps: int,
    progress: Progress,
    setup: "Setup",
) -> Outcome:
    """Run the command, follow its metrics and its log, and end all its processes.

    verl asks the system for a free port and listens on it only seconds later. If another program has got it by then, the
    command is run once more.

    ``environment`` is what the command gets beyond our own.
    """
    from digit_sort.command import taken_out
    from digit_sort.processes import ProcessTree

    metrics, log = out / "metrics.jsonl", out / "verl.log"
    write_command(out / "command.sh", command, environment, taken_out(setup))
    begin = progress.seconds
    inherited = {name: value for name, value in os.environ.items() if name not in taken_out(setup)}
    for attempt in range(ATTEMPTS):
        progress.show(
            "verl lost its port to another program; starting Ray again" if attempt else "starting Ray"
        )
        metrics.write_text("")
        with ProcessTree(command, inherited | environment, out, log) as tree:
            status, rows, first_step = follow(tree, metrics, log, steps, progress)
            progress.show("ending Ray")
        if rows or status == 0 or PORT_LOST not in log.read_text(errors="replace"):
            break
    if status != 0 or len(rows) < steps:
        raise SmokeError(failure(status, len(rows), steps, log))
    seconds = {"assets": begin, "start-up": first_step - begin, "training": progress.seconds - first_step}
    return Outcome(rows, seconds, tree.peak_bytes, tree.device_bytes)


def follow(
    tree: "ProcessTree", metrics: Path, log: Path, steps: int, progress: Progress
) -> tuple[int | None, list[dict[str, Any]], float]:
    """Tell of each step until the command ends or no step has come for a long time.

    Returns:
        The exit status, None if the command still runs; verl's metrics; when the first step was done.
    """
    status, rows = None, []
    first_step = last_news = measured = progress.seconds
    while status is None and progress.seconds - last_news < PATIENCE:
        status = tree.wait(0.5)
        if progress.seconds - measured > MEASURE_EVERY:
            tree.measure()
            measured = progress.seconds
        before, rows = len(rows), report.read_metrics(metrics.read_text())
        if not rows:
            first_step = progress.seconds
            progress.show(phase(log.read_text(errors="replace")))
        elif len(rows) > before:
            last_news = progress.seconds
            rewards = [row[report.REWARD] for row in rows]
            progress.show(describe_step(rewards, steps, last_news - first_step))
    return status, rows, first_step


def phase(log: str) -> str:
    """Return what verl is doing, by the last milestone in its log."""
    return ([now for milestone, now in PHASES.items() if milestone in log] or ["starting Ray"])[-1]


def failure(status: int | None, done: int, steps: int, log: Path) -> str:
    """Return what to say when verl did not get through: the end of its log, how it ended, where the log is."""
    tail = log.read_text(errors="replace").splitlines()[-TAIL_LINES:]
    end = f"made no step for {PATIENCE:.0f} s" if status is None else f"ended with exit status {status}"
    return "\n".join([*tail, f"verl {end} after {done} of {steps} steps; its whole log: {log}"])


def ray_folder(scratch: Path) -> Path:
    """Return the folder for Ray's files: ``scratch``, or a short one where its sockets' paths were too long."""
    if len(os.fsencode(scratch)) + RAY_BELOW <= LONGEST_SOCKET:
        return scratch
    return Path(tempfile.mkdtemp(prefix="rl-smoke-", dir="/tmp"))


def write_command(
    path: Path, command: list[str], environment: dict[str, str], taken_out: Sequence[str]
) -> None:
    """Write the command as a script, with its environment, to read or to repeat."""
    exports = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    folders = 'mkdir -p "$HOME" "$TMPDIR" "$RAY_TMPDIR"'
    words = " \\\n  ".join(shlex.quote(word) for word in command)
    path.write_text(
        "\n".join(["#!/bin/sh", f"unset {' '.join(taken_out)}", *exports, folders, f"exec {words}\n"])
    )


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line; what follows ``--`` are hydra overrides."""
    parser = argparse.ArgumentParser(
        description="Train a tiny model with verl, then with TRL, on this machine's CPU and see the rewards rise.",
        epilog="What follows -- goes to verl as it is, e.g.: -- actor_rollout_ref.actor.optim.lr=5e-4",
    )
    parser.add_argument("--estimator", default="reinforce_pp", help="advantage estimator (%(default)s)")
    parser.add_argument("--steps", type=int, default=STEPS, help="training steps (%(default)s)")
    parser.add_argument(
        "--answers",
        type=int,
        default=1,
        choices=(1, 2, 4, 8, 16, 32),
        help="answers to each prompt, for estimators that compare them (%(default)s)",
    )
    parser.add_argument("--out", type=Path, default=DEFAULT_OUT, help="folder for all that is written")
    parser.add_argument("--seed", type=int, default=0, help="for weights, data and sampling (%(default)s)")
    parser.add_argument("overrides", nargs="*", help="hydra overrides, after --")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str]) -> int:
    """Run, print the table and the verdict, and return the exit status: 0 if the reward rose."""
    options = parse(arguments)
    if (problem := requirements.problem()) is not None:
        print(problem, file=sys.stderr)
        return 2
    out = options.out.resolve()
    os.environ |= {"MPLCONFIGDIR": str(out / "scratch" / "cache"), "HF_HUB_OFFLINE": "1"}
    try:
        with Progress(sys.stdout) as progress:
            outcome = execute(
                options.estimator,
                options.steps,
                out,
                options.overrides,
                options.seed,
                options.answers,
                progress,
            )
            in_trl = train_in_trl(options, out, outcome, progress)
    except SmokeError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing is left running", file=sys.stderr)
        return 130
    rose = [show("verl", options.estimator, outcome.rows)]
    if isinstance(in_trl, str):
        print(f"\nno run in TRL: {in_trl}")
    else:
        rose.append(show("TRL", options.estimator, in_trl))
    parts = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in outcome.seconds.items())
    print(
        f"\ntime: {parts}; peak memory {outcome.peak_bytes / 2**30:.1f} GiB; the curves: {out / 'reward.png'}"
    )
    return 0 if all(rose) else 1


def show(framework: str, estimator: str, rows: Sequence[dict[str, Any]]) -> bool:
    """Print a run's table and verdict; return whether its reward rose."""
    rose, sentence = report.verdict(rows)
    print(f"\n{estimator} in {framework}", report.table(rows), sentence, sep="\n")
    return rose


# Being asked to end, or losing the terminal, shall leave nothing running either.
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    for one in ENDINGS:
        signal.signal(one, signal.SIG_IGN)  # a second Ctrl-C must not stop the tidying up
    raise KeyboardInterrupt


def end_when_asked() -> None:
    """Have a signal to end raise `KeyboardInterrupt`, on which everything is tidied up."""
    for one in ENDINGS:
        signal.signal(one, _interrupt)


if __name__ == "__main__":
    end_when_asked()
    sys.exit(main(sys.argv[1:]))
