"""What a critic cannot be combined with, refused when the trainer is made."""

from typing import TYPE_CHECKING, Any

from accelerate.utils import DistributedType
from transformers import ProcessorMixin

from rl_estimators.errors import InputError

if TYPE_CHECKING:
    from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["check"]

_SHARDED = {
    DistributedType.DEEPSPEED: "DeepSpeed",
    DistributedType.FSDP: "FSDP",
    DistributedType.MEGATRON_LM: "Megatron-LM",
    DistributedType.XLA: "XLA",
}
# Made from a list of parameters alone; the others want the model, a package, or a step of their own.
_OPTIMIZERS = ("adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad", "rmsprop")
_NEEDS_A_METRIC = ("reduce_lr_on_plateau", "greedy")


def check(trainer: "EstimatorTrainer", value_model: Any) -> None:
    """Refuse what a critic does not support.

    Raises:
        InputError: the setting, the reason, and the nearest thing that works.
    """
    _check_choice(trainer, value_model)
    _check_machine(trainer)
    _check_optimizer(trainer)
    args = trainer.args
    schedule = getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type)
    if schedule in _NEEDS_A_METRIC:
        raise InputError(
            f"lr_scheduler_type={schedule!r} follows a metric of the policy, which says nothing about the critic's "
            "learning rate; choose a schedule of steps, such as 'linear', 'cosine' or 'constant'"
        )
    if isinstance(trainer.processing_class, ProcessorMixin):
        raise InputError(
            f"processing_class is a {type(trainer.processing_class).__name__}: the critic reads text alone and would "
            "judge images it has not seen; pass the tokenizer if the task has no images, or choose an adv_estimator "
            "without a critic, such as 'grpo' or 'reinforce_pp_baseline'"
        )
    if args.critic == "shared":
        _check_shared(trainer)


def _check_choice(trainer: "EstimatorTrainer", value_model: Any) -> None:
    if value_model is None:
        return
    if trainer.args.critic == "shared":
        raise InputError(
            "critic='shared' is a head on the policy, so value_model would not be used; drop one of the two"
        )
    name = trainer.args.critic_model_name_or_path
    if name is not None:
        raise InputError(
            f"value_model and critic_model_name_or_path={name!r} both name the critic; drop one of the two"
        )


def _check_machine(trainer: "EstimatorTrainer") -> None:
    accelerator = trainer.accelerator
    engine = _SHARDED.get(accelerator.distributed_type)
    if engine is not None:
        raise InputError(
            f"a critic under {engine} is not supported: accelerate prepares one training model per run there, and the "
            "critic would be a second; use DDP (accelerate launch --multi_gpu, or torchrun, without it), or an "
            "adv_estimator without a critic, such as 'grpo' or 'reinforce_pp'"
        )
    if getattr(accelerator, "parallelism_config", None) is not None:
        raise InputError(
            "a critic with parallelism_config is not supported: sequences or weights would be split, and the critic "
            "needs them whole; use DDP"
        )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise InputError(
            f"a critic with {accelerator.mixed_precision} is not supported: the gradient scaler serves one optimizer, "
            "and policy and critic have one each; set bf16=True instead"
        )


def _check_optimizer(trainer: "EstimatorTrainer") -> None:
    """The critic's optimizer is of the policy's kind, which must be known, and one that can be made twice."""
    if trainer.optimizer is not None or trainer.lr_scheduler is not None:
        raise InputError(
            "optimizers=(...) with a critic: the critic needs an optimizer and a schedule of its own, which cannot be "
            "made from yours; set optim, optim_args, learning_rate, critic_learning_rate and lr_scheduler_type instead"
        )
    name = getattr(trainer.args.optim, "value", trainer.args.optim)
    if name not in _OPTIMIZERS:
        raise InputError(
            f"optim={name!r} with a critic, which has an optimizer of the same kind, is not supported; choose one of "
            f"{', '.join(_OPTIMIZERS)}"
        )


def _check_shared(trainer: "EstimatorTrainer") -> None:
    if trainer.args.torch_compile:
        raise InputError(
            "critic='shared' reads the policy's hidden states through a hook, which torch_compile=True may leave out; "
            "set torch_compile=False or critic='separate'"
        )
    for config in getattr(trainer.model, "peft_config", {}).values():
        if getattr(config, "is_prompt_learning", False):
            raise InputError(
                f"critic='shared' with a {config.peft_type.value} adapter is not supported: its virtual tokens shift "
                "the hidden states; use LoRA or critic='separate'"
            )
