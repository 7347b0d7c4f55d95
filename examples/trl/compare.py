"""Four estimators learn to sort digits, three times each, and one is paid at random: a table and a picture.

    python examples/trl/compare.py     # about two minutes on one core; draws examples/trl/compare.png

Each run is `rl-estimators train --config configs/trl/NAME.yaml --seed SEED`. Beside them: PPO that is told of each digit
when it is written (`--token_reward_funcs`), with the same sum; and a control, REINFORCE++ with a coin for a reward, for
which the others' reward is only measured. The exit status is 1 if one gains less than .10 from its first five steps to
its last five, or the control gains .05, or if the critic that is told of each digit explains less than .3 of the
returns' variance in the end.
"""

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from transformers import PrinterCallback, TrainerCallback
from transformers.utils import logging

EXAMPLES = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "trl")]
from digit_sort.progress import Progress  # noqa: E402 (after the path is right)

CONFIGS = EXAMPLES.parent / "configs" / "trl"
REWARD = "rewards/digits_in_place/mean"
EXPLAINED = "critic/explained_variance"
TASK = EXAMPLES / "digit_sort" / "reward.py"
PROCESS, CONTROL = "gae, digit by digit", "random rewards"


class Kind(NamedTuple):
    config: str
    colour: str
    more: tuple[str, ...] = ()  # on the command line


KINDS = {
    "gae (PPO)": Kind("gae", "#c0392b"),
    PROCESS: Kind("gae", "#e59866", ("--token_reward_funcs", f"{TASK}:digit_by_digit")),
    "grpo": Kind("grpo", "#2c6fb3"),
    "reinforce_pp": Kind("reinforce_pp", "#2e8b57"),
    "remax": Kind("remax", "#8e5ea2"),
    CONTROL: Kind(
        "reinforce_pp",
        "#7f8c8d",
        ("--reward_funcs", f"{TASK}:digits_in_place", f"{__file__}:coin", "--reward_weights", "0", "1"),
    ),
}
WINDOW, LEAST_EXPLAINED, MOST_OF_CONTROL = 5, 0.3, 0.05


class Run(NamedTuple):
    rewards: list[float]  # mean of a step's completions
    explained: float | None  # share of the returns' variance that the critic explained in the last steps
    seconds: float

    def ends(self) -> tuple[float, float]:
        """Mean reward of the first and of the last steps."""
        return mean(self.rewards[:WINDOW]), mean(self.rewards[-WINDOW:])

    def gain(self) -> float:
        first, last = self.ends()
        return last - first


def coin(completions: list[str], **kwargs: Any) -> list[float]:
    """A reward that has nothing to do with the completion."""
    return [float(random.random() < 0.5) for _ in completions]


class Telling(TrainerCallback):
    """Says of each step that it is done."""

    def __init__(self, tell: Callable[[int, float], None]) -> None:
        self.tell = tell

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if REWARD in logs:
            self.tell(state.global_step, logs[REWARD])


def train(kind: Kind, seed: int, steps: int, folder: Path, tell: Callable[[int, float], None]) -> Run:
    """One run, as the command line makes it."""
    from rl_estimators.trl.train import prepare

    given = {"seed": seed, "max_steps": steps, "output_dir": folder / "out", "disable_tqdm": True}
    given |= {"model_name_or_path": folder / "model", "dataset_name": folder / "data"}
    given |= {"reward_funcs": f"{TASK}:digits_in_place"}  # from wherever this is started
    words = [word for key, value in given.items() for word in (f"--{key}", str(value))]
    _, trainer = prepare(["--config", str(CONFIGS / f"{kind.config}.yaml"), *words, *kind.more])
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Telling(tell))
    begin = time.process_time()
    trainer.train()
    log = [row for row in trainer.state.log_history if REWARD in row]
    explained = [row[EXPLAINED] for row in log if EXPLAINED in row][-WINDOW:]
    return Run(
        [row[REWARD] for row in log], mean(explained) if explained else None, time.process_time() - begin
    )


def train_all(seeds: int, steps: int, folder: Path, progress: Progress) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {name: [] for name in KINDS}
    every = [(name, seed) for name in KINDS for seed in range(seeds)]
    for number, (name, seed) in enumerate(every, 1):
        place = f"run {number} of {len(every)}: {name}, seed {seed}"

        def tell(step: int, reward: float, place: str = place) -> None:
            if step % 10 == 0:
                progress.show(f"{place}, step {step} of {steps}, mean reward {reward:.3f}")

        runs[name].append(train(KINDS[name], seed, steps, folder, tell))
    return runs


def table(runs: dict[str, list[Run]]) -> str:
    seeds = len(runs[CONTROL])
    columns = [*(f"seed {seed}" for seed in range(seeds)), "least gain", "explained", "CPU seconds a run"]
    lines = [f"| estimator | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name, ones in runs.items():
        cells = ["{:.3f} to {:.3f}".format(*one.ends()) for one in ones]
        cells += [f"{min(one.gain() for one in ones):+.3f}"]
        cells += [", ".join(f"{one.explained:.2f}" for one in ones if one.explained is not None)]
        lines.append(f"| {name} | {' | '.join(cells)} | {mean(one.seconds for one in ones):.1f} |")
    return "\n".join(lines)


def failures(runs: dict[str, list[Run]], least_gain: float) -> list[str]:
    """What did not come out as it should."""
    found = []
    for name, ones in runs.items():
        for seed, one in enumerate(ones):
            who = f"{name}, seed {seed}:"
            if name == CONTROL and one.gain() >= MOST_OF_CONTROL:
                found.append(f"{who} a gain of {one.gain():.3f}, though its rewards are random")
            if name != CONTROL and one.gain() < least_gain:
                found.append(f"{who} a gain of {one.gain():.3f}, less than {least_gain}")
            if name == PROCESS and (one.explained is None or one.explained <= LEAST_EXPLAINED):
                found.append(f"{who} explained variance {one.explained}, not above {LEAST_EXPLAINED}")
    return found


def draw(runs: dict[str, list[Run]], path: Path) -> None:
    """A line for the mean of the seeds, a band from the lowest to the highest; both over five steps."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.6), layout="constrained")
    for name, ones in runs.items():
        smooth = [
            [mean(one.rewards[max(0, i - WINDOW + 1) : i + 1]) for i in range(len(one.rewards))]
            for one in ones
        ]
        steps = range(1, len(smooth[0]) + 1)
        style = {"color": KINDS[name].colour, "lw": 2, "ls": "--" if name == CONTROL else "-"}
        axes.plot(steps, [mean(at) for at in zip(*smooth, strict=True)], label=name, **style)
        axes.fill_between(
            steps, [min(at) for at in zip(*smooth, strict=True)], [max(at) for at in zip(*smooth, strict=True)],
            color=KINDS[name].colour, alpha=0.15, lw=0,
        )  # fmt: skip
    axes.set(
        xlabel="training step, of 128 completions", ylabel="mean reward", xlim=(1, len(steps)), ylim=(0, 1)
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center right", bbox_to_anchor=(1.0, 0.45))
    axes.set_title(f"Sorting 4 digits in TRL; bands: lowest to highest of {len(ones)} seeds", loc="left")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--least-gain", type=float, default=0.10)
    parser.add_argument(
        "--folder", type=Path, default=EXAMPLES.parent / ".smoke" / "trl", help="model and data"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="where to draw")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the same sums on every machine
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with Progress(sys.stdout) as progress:
        if not (chosen.folder / "model" / "config.json").is_file():
            import prepare  # it stands beside this file

            progress.show("making model and data")
            prepare.main(chosen.folder)
        progress.show("importing TRL")
        runs = train_all(chosen.seeds, chosen.steps, chosen.folder, progress)
    print(table(runs))
    draw(runs, chosen.out)
    print("\nexplained: share of the returns' variance that the critic foresaw in the end, by seed")
    print(f"drawn: {chosen.out}")
    wrong = failures(runs, chosen.least_gain)
    print("\n".join(wrong), end="\n" if wrong else "")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
