"""``rl-estimators diagnostics``: what the numbers in the logs mean, what a bad value means and what to do."""

import argparse
import textwrap

from rl_estimators.diagnostics import DIAGNOSTICS, PREFIX, Diagnostic
from rl_estimators.errors import UnknownNameError
from rl_estimators.hints import did_you_mean

__all__ = ["add_arguments", "run"]

_WIDTH = 110


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Names of diagnostics, as they stand in a log or without their prefix."""
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, for example ratio_max")


def run(options: argparse.Namespace) -> int:
    """Print the entries.

    Raises:
        UnknownNameError: no diagnostic has that name.
    """
    names = [name.removeprefix(PREFIX) for name in options.names] or list(DIAGNOSTICS)
    for name in names:
        if name not in DIAGNOSTICS:
            raise UnknownNameError(
                f"no diagnostic is named {name!r}.{did_you_mean(name, DIAGNOSTICS)} Known: {', '.join(DIAGNOSTICS)}"
            )
    print("\n\n".join(_entry(name, DIAGNOSTICS[name]) for name in names))
    return 0


def _entry(name: str, diagnostic: Diagnostic) -> str:
    lines = [PREFIX + name]
    for label, text in (
        ("what", diagnostic.what),
        ("bad", diagnostic.bad),
        ("do", diagnostic.remedy),
        ("needs", diagnostic.needs),
    ):
        start = f"  {label:<6}"
        lines.append(textwrap.fill(text, _WIDTH, initial_indent=start, subsequent_indent=" " * len(start)))
    return "\n".join(lines)
