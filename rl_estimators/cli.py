"""The command ``rl-estimators``: ``list`` what there is, ``doctor`` what is wrong, ``train`` with TRL."""

import argparse
import inspect
import sys
from collections.abc import Sequence
from importlib.util import find_spec

from rl_estimators import doctor
from rl_estimators.errors import EstimatorError
from rl_estimators.registry import ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES, Spec

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code, 0 if all is well and 1 if not."""
    parser = argparse.ArgumentParser(prog="rl-estimators", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names of estimators and losses, what each needs, its source")
    commands.add_parser("doctor", help="check this environment; says what is missing and how to repair it")
    commands.add_parser("train", help="train with TRL; `rl-estimators train --help` has every setting")
    words = sys.argv[1:] if arguments is None else arguments
    if words[:1] == ["train"]:
        return _train(words[1:])  # its arguments are TRL's, and those are not known before TRL is imported
    chosen = parser.parse_args(words).command
    return {"list": _list, "doctor": _doctor}[chosen]()


def _list() -> int:
    broken = False
    for registry in (ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES):
        print(f"{registry.kind}{'es' if registry.kind.endswith('s') else 's'}")
        for name in registry.names():
            try:
                print(_entry(registry.spec(name)))
            except EstimatorError as error:
                print(f"  {name}\n    CANNOT BE USED: {error}")
                broken = True
        print()
    return int(broken)


def _entry(spec: Spec) -> str:
    options = [
        name if default is inspect.Parameter.empty else f"{name}={default!r}"
        for name, default in spec.options.items()
    ]
    lines = [f"  {spec.name}", f"    needs    {', '.join(spec.required) or 'nothing'}"]
    lines += [f"    takes    {', '.join(spec.optional)}"] if spec.optional else []
    lines += [f"    options  {', '.join(options)}"] if options else []
    return "\n".join([*lines, f"    source   {spec.source or spec.function.__module__}"])


def _doctor() -> int:
    findings = doctor.examine()
    for finding in findings:
        print(finding)
    bad = sum(finding.level == "bad" for finding in findings)
    print("\nall well" if not bad else f"\n{bad} to repair")
    return int(bad > 0)


def _train(arguments: Sequence[str]) -> int:
    if find_spec("trl") is None:
        print("rl-estimators train: TRL is not installed: pip install 'rl-estimators[trl]'", file=sys.stderr)
        return 2
    from rl_estimators.trl import train

    try:
        given, trainer = train.prepare(arguments)
    except EstimatorError as error:
        print(f"rl-estimators train: {error}", file=sys.stderr)
        return 2
    train.run(given, trainer)  # what goes wrong from here on shows where
    return 0
