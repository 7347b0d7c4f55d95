"""On the CPU platform verl composes the back end "cpu:gloo,cpu:gloo", and torch refuses a device named twice."""

import os
from typing import Any

from rl_estimators.patching import Function, Patch


def needed() -> bool:
    """Whether this process runs on the CPU platform."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"


def wrap(original: Function) -> Function:
    def initialize_global_process_group_ray(
        timeout_second: int | None = None, backend: str | None = None
    ) -> Any:
        return original(timeout_second=timeout_second, backend=backend or "cpu:gloo")

    return initialize_global_process_group_ray


PATCH = Patch(
    name="verl_cpu_process_group",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.utils.distributed",
    attribute="initialize_global_process_group_ray",
    signature="(timeout_second=None, backend=None)",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/utils/distributed.py#L83",
    remove_when="verl composes its default back end without naming a device twice",
    wrap=wrap,
    reviewed={"0.9.0": "761a94d1a2e0", "0.9.1": "761a94d1a2e0"},
    needed=needed,
)
