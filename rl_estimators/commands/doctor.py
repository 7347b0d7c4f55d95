"""``rl-estimators doctor``: check this environment; says what is missing and how to repair it."""

import argparse

from rl_estimators import doctor

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(options: argparse.Namespace) -> int:
    """Print a line for each finding; 1 if one is bad."""
    findings = doctor.examine()
    for finding in findings:
        print(finding)
    bad = sum(finding.level == "bad" for finding in findings)
    print("\nall well" if not bad else f"\n{bad} to repair")
    return int(bad > 0)
