"""In an agent-loop worker: a greedy session beside each prompt's samples, where the estimator wants one.

Ray sends `AgentLoopWorkerTQ` to its processes by value, this method of its base class within by name, so that
each process looks up its own, and needs the plugin. `rl_estimators.verl.greedy` also relies on what the
method calls afterwards: `_agent_loop_postprocess(output, validate, **kwargs)`, which calls
`_compute_score(outputs, kwargs=kwargs)` and writes ``kwargs`` into each row. Were that to change, the trainer
would find no greedy rewards, and say so.
"""

from collections.abc import Mapping
from typing import Any

from rl_estimators.patching import Function, Patch
from rl_estimators.verl import greedy


def wrap(original: Function) -> Function:
    async def _run_agent_loop(
        self: Any, sampling_params: Mapping[str, Any], trajectory: Mapping[str, Any], **kwargs: Any
    ) -> Any:
        return await greedy.run_session(original, self, sampling_params, trajectory, **kwargs)

    return _run_agent_loop


PATCH = Patch(
    name="verl_greedy_session",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.experimental.agent_loop.agent_loop",
    attribute="AgentLoopWorker._run_agent_loop",
    signature="(self, sampling_params, trajectory, *, agent_name, trace=True, **kwargs)",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/experimental/agent_loop/agent_loop.py#L661",
    remove_when="verl's v1 trainer makes the greedy rollouts of ReMax, for any estimator that asks for them",
    wrap=wrap,
    reviewed={"0.9.0": "46f1af635d13", "0.9.1": "32c3d607c5d4"},
    body_matters=True,
)
