"""verl's critic insists on flash-attention 2, which runs on GPUs only and is a package of its own even there.

The actor takes its attention from ``model.override_config.attn_implementation``, by way of the model's
config. With this patch the critic does too: for the duration of verl's `load_valuehead_model`, the two model
classes that it may load ignore the hard-coded argument, so the config decides. Where flash-attention can run, verl's
critic is left as it is.
"""

import contextlib
import importlib.util
from collections.abc import Iterator
from typing import Any

from rl_estimators.patching import Function, Patch

from .verl_cpu_process_group import needed as on_cpu


def needed() -> bool:
    """Whether flash-attention 2 cannot run: on the CPU platform, or because nothing that brings it is installed.

    transformers finds it in ``flash_attn``, in the hub's ``kernels``, and on an Ascend NPU or an Intel XPU with torch's.
    """
    import torch

    installed = any(
        importlib.util.find_spec(name) is not None for name in ("flash_attn", "kernels", "torch_npu")
    )
    return on_cpu() or not (installed or torch.xpu.is_available())


@contextlib.contextmanager
def _config_decides(auto_class: Any) -> Iterator[None]:
    """Let ``auto_class.from_pretrained`` drop its argument ``attn_implementation``."""
    inherited = "from_pretrained" not in vars(auto_class)
    stored = vars(auto_class).get("from_pretrained")
    bound = auto_class.from_pretrained

    def from_pretrained(*args: Any, **kwargs: Any) -> Any:
        kwargs.pop("attn_implementation", None)
        return bound(*args, **kwargs)

    auto_class.from_pretrained = staticmethod(from_pretrained)
    try:
        yield
    finally:
        if inherited:
            del auto_class.from_pretrained
        else:
            auto_class.from_pretrained = stored


def wrap(original: Function) -> Function:
    def load_valuehead_model(*args: Any, **kwargs: Any) -> Any:
        import transformers

        with (
            _config_decides(transformers.AutoModelForTokenClassification),
            _config_decides(transformers.AutoModelForCausalLM),
        ):
            return original(*args, **kwargs)

    return load_valuehead_model


PATCH = Patch(
    name="verl_critic_attention",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.utils.model",
    attribute="load_valuehead_model",
    signature="(local_path, torch_dtype, model_config, trust_remote_code)",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/utils/model.py#L641",
    remove_when="verl's critic takes its attention from the model's config, as its actor does",
    wrap=wrap,
    reviewed={"0.9.0": "a8eb0107bc1a", "0.9.1": "2371ca280654"},
    needed=needed,
)
