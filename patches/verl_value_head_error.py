"""Say what is wrong when a critic cannot be loaded and TRL is installed but too new to help.

verl's message would be "please install trl", in an environment that has it (see `verl_trl_value_head`), and
it hides that the usual reason is another one: whatever made the first attempt fail.
"""

import importlib.metadata
from typing import Any

from rl_estimators.errors import InputError
from rl_estimators.patching import Function, Patch

from .verl_trl_value_head import needed


def wrap(original: Function) -> Function:
    def load_valuehead_model(*args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except RuntimeError as error:
            if "please install trl" not in str(error) or error.__cause__ is None:
                raise
            reason = error.__cause__
        raise InputError(
            f"cannot load the critic: as a token-classification model it failed with {type(reason).__name__}: "
            f"{reason}. verl's other way, TRL's AutoModelForCausalLMWithValueHead, ended with TRL 1.12 and "
            f"{importlib.metadata.version('trl')} is installed. Mend the failure named above, or, if the "
            "checkpoint was saved with such a value head, install 'trl<1.13'."
        ) from reason

    return load_valuehead_model


PATCH = Patch(
    name="verl_value_head_error",
    distribution="verl",
    releases=">=0.9,<0.10",
    module="verl.utils.model",
    attribute="load_valuehead_model",
    signature="(local_path, torch_dtype, model_config, trust_remote_code)",
    upstream="https://github.com/verl-project/verl/blob/v0.9.1/verl/utils/model.py#L653",
    remove_when="verl_trl_value_head is removed",
    wrap=wrap,
    reviewed={"0.9.0": "a8eb0107bc1a", "0.9.1": "2371ca280654"},
    needed=needed,
)
