"""The value model: a backbone, and a head that turns its hidden states into values."""

import copy
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, cached_file

from rl_estimators.errors import InputError

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["ValueHead", "ValueModel", "backbone_of", "switch_off_dropout", "value_model"]


class ValueHead(nn.Linear):
    """A value per hidden state, in fp32; zero at first, so that an untrained critic says 0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__(hidden_size, 1, dtype=torch.float32)

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(B, L)`` values of ``(B, L, H)`` hidden states; in bf16 a value would have three digits."""
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.to(self.weight)).squeeze(-1)


class ValueModel(nn.Module):
    """A transformer without its language-model head, under a :class:`ValueHead`.

    The backbone bears the name that transformers knows it by (``model``, ``transformer``, ...). So a folder with the
    weights and the backbone's ``config.json`` can be named in ``critic_model_name_or_path``.

    Args:
        backbone: Maps ids and attention mask to hidden states.
    """

    def __init__(self, backbone: PreTrainedModel) -> None:
        super().__init__()
        self._name = backbone.base_model_prefix or "backbone"
        self.add_module(self._name, backbone)
        self.v_head = ValueHead(backbone.config.get_text_config().hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """``(B, L)`` value of each position."""
        output = self.backbone(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        values: Tensor = self.v_head(output[0])
        return values

    @property
    def backbone(self) -> Any:
        """The transformer."""
        return getattr(self, self._name)

    @property
    def config(self) -> Any:
        """The backbone's configuration."""
        return self.backbone.config


def value_model(trainer: "EstimatorTrainer") -> ValueModel:
    """A value model from ``critic_model_name_or_path``, or from the policy's own base weights, in fp32.

    The head is zero, or the trained one if the path is a ``critic`` folder, of a checkpoint or of ``save_model``.
    Nothing is drawn from the random number generator that the policy samples from.

    Raises:
        InputError: the weights do not fit, or have a value head that is not ours.
    """
    name = trainer.args.critic_model_name_or_path
    with torch.random.fork_rng(devices=[]):  # everything here is made on the CPU
        model = _copied(trainer) if name is None else _named(trainer, name)
    args = trainer.args
    if args.gradient_checkpointing and model.backbone.supports_gradient_checkpointing:
        kwargs = {"use_reentrant": False, **(args.gradient_checkpointing_kwargs or {})}
        model.backbone.gradient_checkpointing_enable(gradient_checkpointing_kwargs=kwargs)
    return model


def backbone_of(model: Any) -> Any:
    """The transformer under a causal language model's head, PEFT's wrapper taken off."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    return causal.base_model


def switch_off_dropout(model: nn.Module) -> None:
    """Set each dropout rate in ``model`` to 0.

    The value loss compares a value in training with the same value at rollout. With dropout it would measure noise,
    and the critic would draw from the random numbers of the policy.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _named(trainer: "EstimatorTrainer", name: str) -> ValueModel:
    """The model of a folder, or of a repository on the Hub, with its head if it has one of ours."""
    backbone: PreTrainedModel
    backbone, info = AutoModel.from_pretrained(
        name,
        dtype=torch.float32,
        attn_implementation=trainer.model.config._attn_implementation,
        trust_remote_code=trainer.args.trust_remote_code,
        output_loading_info=True,
    )
    own, policys = (m.config.get_text_config().vocab_size for m in (backbone, trainer.model))
    if own < policys:
        raise InputError(
            f"critic_model_name_or_path={name!r} knows {own} tokens and the policy writes {policys}; a critic reads the "
            "policy's tokens, so name a model with its tokenizer"
        )
    model = ValueModel(backbone)
    heads = sorted(key for key in info["unexpected_keys"] if "v_head" in key)
    if heads and not _load_head(model.v_head, name):
        raise InputError(
            f"critic_model_name_or_path={name!r} has a value head ({', '.join(heads)}) that cannot be read: expected "
            f"v_head.weight (1, {model.v_head.in_features}) and v_head.bias (1,) in one model.safetensors. Pass such a "
            "model as value_model, or remove these weights for a head that starts at 0"
        )
    return model


def _copied(trainer: "EstimatorTrainer") -> ValueModel:
    """With the policy's backbone with the weights that it has now, without adapters; from memory, not from its path."""
    backbone = backbone_of(trainer.model)
    if not all(p.is_floating_point() for p in backbone.parameters()):
        raise InputError(
            "the policy is quantized, so a critic cannot start from its weights; name unquantized ones in "
            "critic_model_name_or_path, or set critic='shared'"
        )
    config = copy.deepcopy(backbone.config)
    weights = {
        name: tensor.detach().to("cpu", torch.float32, copy=True) for name, tensor in _own(backbone).items()
    }
    found: PreTrainedModel
    found, info = type(backbone).from_pretrained(
        None,
        config=config,
        state_dict=weights,
        dtype=torch.float32,
        attn_implementation=config._attn_implementation,
        output_loading_info=True,
    )
    missing = sorted(info["missing_keys"])
    if missing:
        raise InputError(
            f"the policy's {type(backbone).__name__} could not be copied for the critic: {', '.join(missing[:3])} "
            f"({len(missing)} in all) are not among its weights; name a model in critic_model_name_or_path"
        )
    return ValueModel(found)


def _own(backbone: nn.Module) -> dict[str, Tensor]:
    """The weights under the names they had before PEFT put its layers around them."""
    weights = {}
    for name, tensor in backbone.state_dict().items():
        if "lora_" not in name and ".modules_to_save." not in name:
            weights[name.replace(".base_layer.", ".").replace(".original_module.", ".")] = tensor
    return weights


def _load_head(head: ValueHead, name: str) -> bool:
    """Take over the head of the model ``name``; False if it has none that fits."""
    file = cached_file(name, SAFE_WEIGHTS_NAME, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return False
    with safe_open(file, "pt") as tensors:
        names = {key: f"v_head.{key}" for key in head.state_dict()}
        if not set(names.values()) <= set(tensors.keys()):
            return False
        found = {key: tensors.get_tensor(stored) for key, stored in names.items()}
    if any(found[key].shape != tensor.shape for key, tensor in head.state_dict().items()):
        return False
    head.load_state_dict(found)
    return True
