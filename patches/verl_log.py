"""The sums that workers report of their updates become diagnostics in verl's log.

A worker sees a part of a batch, so it reports sums, and only who has all of them can divide. Every trainer of verl's
hands its metrics of a step to ``Tracking.log``, under the names it gave them.
"""

from typing import Any

from rl_estimators.patching import Function, Patch
from rl_estimators.verl import diagnostics


def wrap(original: Function) -> Function:
    def log(self: Any, data: Any, step: Any, backend: Any = None) -> Any:
        return original(self, diagnostics.finish(data), step, backend)

    return log


PATCH = Patch(
    name="verl_log",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.utils.tracking",
    attribute="Tracking.log",
    signature="(self, data, step, backend=None)",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/utils/tracking.py#L191",
    remove_when="a worker's loss can report a metric that the trainer finishes, under a name of its own",
    wrap=wrap,
    reviewed={"0.9.0": "2158e536f185", "0.9.1": "2158e536f185"},
)
