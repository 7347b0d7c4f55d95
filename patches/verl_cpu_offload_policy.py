"""verl's reference model keeps its parameters in pinned host memory, and pinning needs an accelerator.

Parameters offloaded without pinning behave the same; only copies to a GPU would be slower.
"""

from collections.abc import Mapping
from typing import Any

from rl_estimators.patching import Function, Patch

from .verl_cpu_process_group import needed


def wrap(original: Function) -> Function:
    def apply_fsdp2(model: Any, fsdp_kwargs: Mapping[str, Any], config: Any) -> Any:
        from torch.distributed.fsdp import CPUOffloadPolicy

        if isinstance(fsdp_kwargs.get("offload_policy"), CPUOffloadPolicy):
            fsdp_kwargs = {**fsdp_kwargs, "offload_policy": CPUOffloadPolicy(pin_memory=False)}
        return original(model, fsdp_kwargs, config)

    return apply_fsdp2


PATCH = Patch(
    name="verl_cpu_offload_policy",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.utils.fsdp_utils",
    attribute="apply_fsdp2",
    signature="(model, fsdp_kwargs, config)",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/workers/engine/fsdp/transformer_impl.py#L462",
    remove_when="verl asks for pinned memory only where there is an accelerator",
    wrap=wrap,
    reviewed={"0.9.0": "bd9d609b3414", "0.9.1": "bd9d609b3414"},
    needed=needed,
)
