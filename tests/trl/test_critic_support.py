"""What a critic is refused with: the message names the setting, the reason and what works."""

from types import SimpleNamespace

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import critics  # noqa: E402
import torch  # noqa: E402
import toy  # noqa: E402
from accelerate.utils import DistributedType  # noqa: E402

from rl_estimators.errors import InputError  # noqa: E402
from rl_estimators.trl.critic import support  # noqa: E402


@pytest.fixture
def trainer():
    """As much of a trainer as the checks read; one that passes them."""
    args = SimpleNamespace(
        critic="separate",
        critic_model_name_or_path=None,
        lr_scheduler_type="linear",
        torch_compile=False,
        optim="adamw_torch",
    )
    accelerator = SimpleNamespace(
        distributed_type=DistributedType.MULTI_GPU, parallelism_config=None, mixed_precision="bf16"
    )
    found = SimpleNamespace(
        args=args,
        accelerator=accelerator,
        processing_class=None,
        model=torch.nn.Linear(1, 1),
        optimizer=None,
        lr_scheduler=None,
    )
    support.check(found, None)
    return found


@pytest.mark.parametrize("kind", ["separate", "shared"])
@pytest.mark.parametrize("engine", ["DEEPSPEED", "FSDP", "MEGATRON_LM", "XLA"])
def test_sharding_engines(trainer, engine, kind):
    trainer.args.critic, trainer.accelerator.distributed_type = kind, DistributedType[engine]
    with pytest.raises(
        InputError, match=r"a critic under (DeepSpeed|FSDP|Megatron-LM|XLA) is not supported.*use DDP"
    ):
        support.check(trainer, None)


def test_split_sequences_and_weights(trainer):
    trainer.accelerator.parallelism_config = object()
    with pytest.raises(InputError, match=r"a critic with parallelism_config is not supported.*use DDP"):
        support.check(trainer, None)


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_scaler_for_two(trainer, precision):
    trainer.accelerator.mixed_precision = precision
    with pytest.raises(InputError, match=rf"a critic with {precision} is not supported.*set bf16=True"):
        support.check(trainer, None)


@pytest.mark.parametrize("name", ["reduce_lr_on_plateau", "greedy"])
def test_schedules_of_a_metric(trainer, name):
    trainer.args.lr_scheduler_type = name
    with pytest.raises(
        InputError, match=rf"lr_scheduler_type='{name}' follows a metric of the policy.*'linear'"
    ):
        support.check(trainer, None)


@pytest.mark.parametrize("name", ["galore_adamw", "lomo", "adamw_8bit", "schedule_free_adamw"])
def test_optimizers_that_cannot_be_made_twice(trainer, name):
    trainer.args.optim = name
    with pytest.raises(
        InputError, match=rf"optim='{name}' with a critic.* choose one of adamw_torch, .*adafactor"
    ):
        support.check(trainer, None)


@pytest.mark.parametrize("given", ["optimizer", "scheduler"])
def test_an_optimizer_of_the_users(tiny, tmp_path, given):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    optimizers = (optimizer, None) if given == "optimizer" else (None, scheduler)
    with pytest.raises(
        InputError, match=r"optimizers=\(...\) with a critic.*set optim, .*critic_learning_rate"
    ):
        toy.make(critics.PPOTrainer, critics.config(tmp_path), tiny, optimizers=optimizers)


def test_images(trainer):
    from transformers import ProcessorMixin

    trainer.processing_class = ProcessorMixin.__new__(ProcessorMixin)
    with pytest.raises(
        InputError, match=r"processing_class is a ProcessorMixin: the critic reads text alone.*tokenizer"
    ):
        support.check(trainer, None)


def test_two_critics(trainer):
    trainer.args.critic_model_name_or_path = "gpt2"
    with pytest.raises(
        InputError, match=r"value_model and critic_model_name_or_path='gpt2' both name the critic"
    ):
        support.check(trainer, torch.nn.Linear(1, 1))
    trainer.args.critic = "shared"
    with pytest.raises(
        InputError, match=r"critic='shared' is a head on the policy, so value_model would not be used"
    ):
        support.check(trainer, torch.nn.Linear(1, 1))


def test_what_a_shared_critic_cannot_see(trainer):
    trainer.args.critic, trainer.args.torch_compile = "shared", True
    with pytest.raises(
        InputError, match=r"through a hook, which torch_compile=True may leave out.*critic='separate'"
    ):
        support.check(trainer, None)
    trainer.args.torch_compile = False
    prompts = SimpleNamespace(is_prompt_learning=True, peft_type=SimpleNamespace(value="PREFIX_TUNING"))
    trainer.model.peft_config = {"default": prompts}
    with pytest.raises(
        InputError, match=r"critic='shared' with a PREFIX_TUNING adapter is not supported.*use LoRA"
    ):
        support.check(trainer, None)


def test_a_trainer_asks(tiny, tmp_path):
    """The checks stand where a trainer is made."""
    config = critics.config(tmp_path, lr_scheduler_type="greedy", eval_strategy="epoch")
    with pytest.raises(InputError, match="lr_scheduler_type='greedy'"):
        toy.make(critics.PPOTrainer, config, tiny)
