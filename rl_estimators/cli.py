"""The command ``rl-estimators``: what there is, what is wrong, what estimators make of rollouts, how runs went."""

import argparse
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from rl_estimators.errors import EstimatorError

__all__ = ["COMMANDS", "main"]

COMMANDS: Mapping[str, str] = {
    "list": "names of estimators and losses, what each needs, its source",
    "doctor": "check this environment; says what is missing and how to repair it",
    "compare": "estimators side by side on rollouts of verl or TRL: what each learns from, and where they differ",
    "diagnostics": "the numbers in the logs: what each is, what a bad value means, what to do",
    "plot": "curves of training runs, from verl's and TRL's own logs",
    "train": "train with TRL; `rl-estimators train --help` has every setting",
}


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 all is well, 1 it is not, 2 what was asked could not be done."""
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["train"]:
        code: int = _module("train").run(words[1:])
        return code
    parser = argparse.ArgumentParser(prog="rl-estimators", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        if words[:1] == [name]:
            _module(name).add_arguments(command)
    options = parser.parse_args(words)
    code = 0
    try:
        code = _run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `| head`: it has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return code


def _run(options: argparse.Namespace) -> int:
    try:
        code: int = _module(options.command).run(options)
    except EstimatorError as error:
        print(f"rl-estimators {options.command}: {_printable(str(error))}", file=sys.stderr)
        return 2
    return code


def _printable(message: str) -> str:
    """A message may quote a file's name or content, which must not command the terminal; its own lines stay."""
    from rl_estimators.files.plain import MOST, clip

    return "\n".join(clip(line, MOST) for line in message.split("\n"))


def _module(name: str) -> Any:
    return import_module(f"rl_estimators.commands.{name}")
