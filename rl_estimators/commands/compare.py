"""``rl-estimators compare``: estimators side by side on rollouts that were really made."""

import argparse
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from rl_estimators.compare import FORMATS, Comparison, Problems, Reader, all_choices, compare, read_choices
from rl_estimators.compare.choices import Choice
from rl_estimators.compare.files import files_of
from rl_estimators.compare.keeping import Kept, large_blocks_apart
from rl_estimators.compare.machine import as_json
from rl_estimators.compare.outputs import check_output
from rl_estimators.compare.progress import progress
from rl_estimators.compare.report import report
from rl_estimators.compare.steps import Steps
from rl_estimators.compare.summary import Summary, summarise
from rl_estimators.compare.tokens import Tokens
from rl_estimators.compare.weights import Weights
from rl_estimators.compare.words import Words
from rl_estimators.errors import InputError
from rl_estimators.files.outputs import check_png, write
from rl_estimators.files.plain import MOST, clip, escaped
from rl_estimators.modules import load_module

__all__ = ["add_arguments", "run"]

_EPILOG = """\
files, whatever their names:
  verl     what `trainer.rollout_data_dir` holds, a file N.jsonl a step; the folder is the whole run
  trl      what `log_completions=True` writes into OUTPUT_DIR/completions; OUTPUT_DIR will do as well
  jsonl    an object a line: prompt (or uid), response (text, or the list of its tokens), reward (or
           token_level_rewards, or reward_components) and, if there are, mask, values, truncated with
           bootstrap_value, reward_baseline, step
  tensors  .safetensors or .pt, from rl_estimators.compare.save

examples:
  rl-estimators compare rollouts/ --estimators grpo,rloo,reinforce_pp
  rl-estimators compare out/ --estimators grpo,grpo:norm_by_std=false --html page.html
"""
_NARROWEST = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Files, what to make of them, and where to write it."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = _EPILOG
    parser.add_argument(
        "rollouts", nargs="+", type=Path, metavar="ROLLOUTS", help="files or folders, see below"
    )
    parser.add_argument(
        "--estimators", action="append", metavar="NAMES",
        help="separated by commas, with options as in grpo:norm_by_std=false,compat=verl; default: all that can run",
    )  # fmt: skip
    parser.add_argument(
        "--external_modules", "--external-modules", action="append", default=[], metavar="MODULE",
        help="a module or .py file to import first, such as one that registers estimators of yours",
    )  # fmt: skip
    parser.add_argument("--steps", metavar="STEPS", help="which, like 1,5,10-20; default: all")
    parser.add_argument("--each", action="store_true", help="a table for each step as well")
    parser.add_argument("--top", type=int, default=10, metavar="N", help="prompts and responses listed (10)")
    parser.add_argument("--format", choices=[*FORMATS], help="default: found from the content")
    parser.add_argument(
        "--tokenizer",
        metavar="PATH_OR_NAME",
        help="split text into the tokens of this model (needs transformers)",
    )
    parser.add_argument(
        "--reward-weights", metavar="WEIGHTS",
        help="of several rewards: 0.5,1 in the file's order, or NAME=0.5,NAME=1; default: 1 each",
    )  # fmt: skip
    parser.add_argument(
        "--strict", action="store_true", help="refuse what cannot be read instead of skipping it"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page that needs no network")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw (needs matplotlib)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers")


def run(options: argparse.Namespace) -> int:
    """Read, compare, write, print; 0, or an error.

    Raises:
        InputError: what was asked cannot be done.
    """
    outputs = {name: getattr(options, name) for name in ("html", "png", "json") if getattr(options, name)}
    _check(options, outputs)
    large_blocks_apart()
    problems = Problems(options.strict)
    kept = Kept(want=bool(options.html))
    try:
        summaries = _compare(options, problems, kept)
        if "html" in outputs and kept.left_out:
            problems.note(
                "--html",
                f"{kept.left_out:,} {'batch' if kept.left_out == 1 else 'batches'} did not find room in the page; choose fewer with --steps, or fewer estimators",
            )
    finally:
        for line in problems.lines():
            print(f"rl-estimators compare: {clip(line, MOST)}", file=sys.stderr)
    _write(outputs, options, summaries, kept.comparisons, problems)
    _print(summaries, options)
    return 0


def _check(options: argparse.Namespace, outputs: Mapping[str, Path]) -> None:
    """Everything that can be wrong with the command is said before a long file is read."""
    if options.top < 0:
        raise InputError(f"--top is {options.top}, expected a number of at least 0")
    inputs = [path for path, _ in files_of(options.rollouts)] if outputs else []
    for name, path in outputs.items():
        check_output(f"--{name}", path, inputs)
    if len({path.resolve() for path in outputs.values()}) < len(outputs):
        raise InputError("--html, --png and --json name one file")
    if options.png:
        check_png("--png", options.png)
        if find_spec("matplotlib") is None:
            raise InputError("--png needs matplotlib: pip install 'rl-estimators[see]'")


def _compare(options: argparse.Namespace, problems: Problems, kept: Kept) -> list[Summary]:
    for name in options.external_modules:
        load_module(name, "--external_modules")
    choices = read_choices(options.estimators) if options.estimators else all_choices()
    steps, weights = Steps(options.steps), Weights(options.reward_weights)
    splitter = Tokens(options.tokenizer) if options.tokenizer else Words()
    total = sum(path.stat().st_size for path, _ in files_of(options.rollouts))
    summaries = []
    with progress(total) as advance:
        reader = Reader(options.format, steps, splitter, weights, problems, advance)
        for rollouts in reader.read(options.rollouts):
            comparison = compare(rollouts, choices)
            kept.offer(comparison)
            summaries.append(summarise(comparison, options.top))
    _check_ran(summaries, choices)
    return summaries


def _check_ran(summaries: Sequence[Summary], choices: Sequence[Choice]) -> None:
    labels = {choice.label for choice in choices}
    if any(labels & {*summary.columns} for summary in summaries):
        return
    reasons = {reason: name for summary in summaries for name, reason in summary.not_run.items()}
    told = "\n".join(f"  {name}: {reason}" for reason, name in reasons.items())
    raise InputError(f"no estimator can run on these rollouts\n{told}")


def _write(
    outputs: Mapping[str, Path],
    options: argparse.Namespace,
    summaries: Sequence[Summary],
    comparisons: Sequence[Comparison],
    problems: Problems,
) -> None:
    """All is made before the first file is written."""
    title = ", ".join(path.name or str(path) for path in options.rollouts)
    made: dict[str, bytes] = {}
    if "html" in outputs:
        from rl_estimators.compare.page import render

        made["html"] = render(comparisons, title).encode()
    if "png" in outputs:
        from rl_estimators.compare.picture import draw

        made["png"] = draw(summaries, title)
    if "json" in outputs:
        made["json"] = as_json(summaries, problems).encode()
    for name, content in made.items():
        try:
            write(outputs[name], content)
        except OSError as error:
            raise InputError(
                f"--{name} {outputs[name]}: it cannot be written: {error.strerror or error}"
            ) from error
        print(f"wrote {escaped(str(outputs[name]))}", file=sys.stderr)


def _print(summaries: Sequence[Summary], options: argparse.Namespace) -> None:
    columns = max(shutil.get_terminal_size((100, 24)).columns, _NARROWEST)
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may not have every sign
    for line in report(summaries, columns, options.top, options.each):
        print(line)
