"""``rl-estimators list``: names of estimators and losses, what each needs, its source."""

import argparse
import inspect

from rl_estimators.errors import EstimatorError
from rl_estimators.registry import ADV_ESTIMATORS, POLICY_LOSSES, VALUE_LOSSES, Spec

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It takes none."""


def run(options: argparse.Namespace) -> int:
    """Print the catalogue; 1 if something in it cannot be used."""
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
