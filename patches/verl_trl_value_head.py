"""verl breaks every FSDP model load beside a TRL that has no value-head model any more.

`apply_monkey_patch` imports `AutoModelForCausalLMWithValueHead` from TRL whenever TRL is installed; the last
release that has it is 1.12. All of verl's uses stand behind `is_trl_available`, which its modules import by
name later than verl loads its plugins, so answering "no" there covers them all. What then is lost is verl's
fall-back to a TRL critic, which such a TRL could not provide; see `verl_value_head_error` for the message.
"""

import importlib.metadata
from collections.abc import Callable

from packaging.version import Version

from rl_estimators.patching import Patch

FIRST_WITHOUT = Version("1.13.dev0")


def needed() -> bool:
    """Whether the installed TRL, if any, lacks the value-head model."""
    try:
        return Version(importlib.metadata.version("trl")) >= FIRST_WITHOUT
    except importlib.metadata.PackageNotFoundError:
        return False


def wrap(original: Callable[[], bool]) -> Callable[[], bool]:
    def is_trl_available() -> bool:
        return False

    return is_trl_available


PATCH = Patch(
    name="verl_trl_value_head",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.utils.import_utils",
    attribute="is_trl_available",
    signature="()",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/models/transformers/monkey_patch.py#L352",
    remove_when="verl imports TRL's value-head model only where it uses it, or not at all",
    wrap=wrap,
    reviewed={"0.9.0": "1a123c4fa66c", "0.9.1": "1a123c4fa66c"},
    needed=needed,
)
