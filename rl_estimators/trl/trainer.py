"""TRL's ``GRPOTrainer`` with advantages, losses and a critic by name.

One step of TRL's trainer, and where ours joins it:

1. completions are generated and scored         ``_calculate_rewards``: keep the rewards; ReMax: a greedy completion
2. rewards become advantages                    ``_generate_and_score_completions``: replace them by ours
3. the loss of a micro-batch                    ``_compute_loss``: a policy loss of ours; the critic learns as well
4. an optimizer step                            ``training_step``: the critic's too; the policy waits while it warms up;
                                                neither steps along a gradient that is not finite
5. a checkpoint                                 the critic, its optimizer and the generation batch belong to it
"""

import inspect
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, ClassVar

import torch
import trl
from packaging.version import Version
from torch import Tensor, nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from trl import GRPOTrainer

from rl_estimators.errors import InputError
from rl_estimators.registry import ADV_ESTIMATORS
from rl_estimators.trl import advantages, counts, finite, greedy, policy, refusals, rollouts, upstream
from rl_estimators.trl.config import TRL_LOSS, EstimatorConfig
from rl_estimators.trl.critic import Critic, checkpoint, make_critic
from rl_estimators.trl.diagnostics import Diagnostics
from rl_estimators.trl.rewards import Scored, TokenReward, token_rewards

__all__ = ["EstimatorTrainer"]

_KL_FILE = "kl_controller.json"


class EstimatorTrainer(GRPOTrainer):
    """``trl.GRPOTrainer`` with an advantage estimator, a policy loss and a value loss of your choice.

    The one thing that differs: what happens between the rewards and the gradient. Generation, reward functions,
    tools, PEFT, logging and checkpoints are TRL's. Advantages are per token, computed over the batch of all
    processes; an estimator that asks for ``values`` gets a critic, one that asks for ``reward_baselines`` a greedy
    completion per prompt.

    A trainer for an estimator of your own::

        class MyTrainer(EstimatorTrainer):
            adv_estimator = "my_estimator"

    Args:
        *args: As for :class:`trl.GRPOTrainer`; ``args`` is an :class:`EstimatorConfig`.
        value_model: The critic: a model that maps ids and attention mask to a value per token (a tensor ``(B, L)``,
            or an output with ``logits`` ``(B, L, 1)``). By default it is made from the policy's backbone.
        token_reward_funcs: Functions called like reward functions that return, for each completion, a number per
            token: process rewards. They are added to the rewards of ``reward_funcs``.
        **kwargs: As for :class:`trl.GRPOTrainer`.

    Raises:
        InputError: settings that contradict each other or are not supported together; the message says what works.
        PatchError: this release of TRL is not as reviewed; the message names what changed.
    """

    adv_estimator: ClassVar[str] = "grpo"
    config_class: ClassVar[type[EstimatorConfig]] = EstimatorConfig
    beta: float
    _tag_names: ClassVar[list[str]] = ["trl", "rl-estimators"]
    _name = "an estimator of rl-estimators"
    _paper: ClassVar[dict[str, str]] = {}

    def __init__(
        self,
        *args: Any,
        value_model: nn.Module | None = None,
        token_reward_funcs: TokenReward | Sequence[TokenReward] = (),
        **kwargs: Any,
    ) -> None:
        upstream.check()
        bound = inspect.signature(GRPOTrainer.__init__).bind(self, *args, **kwargs)
        config = self._config(bound.arguments)
        bound.arguments["args"] = config
        self.estimator = ADV_ESTIMATORS.spec(config.estimator_name(self.adv_estimator))
        self.estimator_options = config.estimator_options(self.estimator)
        ours = config.policy_loss != TRL_LOSS
        self.policy_loss_options = config.policy_loss_options() if ours else {}
        functions = [token_reward_funcs] if callable(token_reward_funcs) else list(token_reward_funcs)
        refusals.check(self.estimator, config, bound.arguments, value_model, functions)
        self._token_reward_funcs = functions
        self._scored: Scored | None = None
        self.critic: Critic | None = None
        self.diagnostics: Diagnostics | None = Diagnostics(self) if config.diagnostics else None
        self.kl_controller = config.kl_controller()
        super().__init__(*bound.args[1:], **bound.kwargs)
        upstream.check_attributes(self)
        if self.decodes_greedily and self.use_vllm:
            greedy.check_engine(self.vllm_generation)
        if "values" in self.estimator.required:
            self.critic = make_critic(self, value_model)

    def wants(self, name: str) -> bool:
        """Whether the estimator asks for the input ``name``."""
        return self.estimator.asks_for(name)

    @property
    def decodes_greedily(self) -> bool:
        """Whether the estimator cannot do without ``reward_baselines``: each costs a greedy completion."""
        return "reward_baselines" in self.estimator.required

    @property
    def mode(self) -> str:
        """``"train"`` or ``"eval"``, as TRL's metrics have it."""
        return "train" if self.model.training else "eval"

    def _config(self, arguments: dict[str, Any]) -> EstimatorConfig:
        config = arguments.get("args")
        if config is None:
            model = arguments["model"]
            name = model if isinstance(model, str) else model.config._name_or_path
            return self.config_class(f"{name.rstrip('/').split('/')[-1]}-{type(self).__name__}")
        if not isinstance(config, EstimatorConfig):
            raise InputError(
                f"args is a {type(config).__name__}, expected {self.config_class.__name__} (or another "
                "EstimatorConfig), which has all of its fields"
            )
        return config

    # ------------------------------------------------------------------------------------------ rewards, advantages

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        scored, self._scored = self._scored, None  # the greedy completions are scored here, too
        if scored is not None:
            scored.rewards_per_func = rewards
            scored.truncated = self._truncated(completion_ids_list)
            scored.token_rewards = token_rewards(self, prompts, completions, completion_ids_list, inputs)
            if self.decodes_greedily:
                scored.reward_baselines = greedy.baselines(self, inputs, prompts, scored)
        return rewards

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        scored = self._scored = Scored()
        try:
            with greedy.beside_samples(self, len(inputs)) if self.decodes_greedily else nullcontext():
                batch = super()._generate_and_score_completions(inputs)
        finally:
            self._scored = None
        if self.args.policy_loss != TRL_LOSS or self.critic is not None:
            counts.add_rows(self, batch)
        return advantages.add(self, batch, scored)

    def _truncated(self, completion_ids: Sequence[Sequence[int]]) -> Tensor:
        """``(B,)`` bool: completions that the length limit cut off, by TRL's own criterion."""
        ends = {self._tokenizer.pad_token_id, *_end_tokens(self)}
        return torch.tensor([ids[-1] not in ends for ids in completion_ids], device=self.accelerator.device)

    # ------------------------------------------------------------------------------------------------------- losses

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        critic = self.critic if self.model.training else None
        diagnostics = self.diagnostics if self.model.training else None
        with (
            nullcontext() if critic is None else critic.watching(),
            nullcontext() if diagnostics is None else diagnostics.watching(inputs),
            self._without_kl_in_loss(),
        ):
            if self.args.policy_loss == TRL_LOSS:
                loss: Tensor = super()._compute_loss(model, inputs)
            else:
                loss = policy.loss(self, model, inputs)
        return loss if critic is None else critic.learn(inputs, loss)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        found = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if self.diagnostics is not None:
            self.diagnostics.see(found[0])
        return found

    @contextmanager
    def _without_kl_in_loss(self) -> Iterator[None]:
        """The reference model is there because beta is not 0; the loss must not count the KL a second time."""
        beta = self.beta
        if self.args.kl_in_reward:
            self.beta = 0.0
        try:
            yield
        finally:
            self.beta = beta

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        if self.critic is not None:
            self.critic.step()
            if self.state.global_step < self.args.critic_warmup_steps:
                # no gradient, no step: neither momentum nor weight decay moves the policy
                model.zero_grad(set_to_none=True)
        finite.drop_unless_finite(self, model)
        if self.diagnostics is not None:
            self.diagnostics.step()
        return loss

    # -------------------------------------------------------------------------------------------------- checkpoints

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self.critic is not None:
            self.critic.create_scheduler(num_training_steps)
        return scheduler

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        if self.critic is not None and self.args.should_save:
            folder = Path(self._get_output_dir(trial)) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            checkpoint.begin(folder)
            self.critic.save(folder / checkpoint.FOLDER, optimizer=not self.args.save_only_model)
        super()._save_checkpoint(model, trial)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """As TRL's; the critic's weights are written beside the policy's, into ``critic/``.

        ``critic_model_name_or_path`` takes that folder of a separate critic. (A checkpoint has the critic already.)
        """
        if self.critic is not None and self.args.should_save and not _internal_call:
            # before the policy, which may push the whole folder to the Hub
            checkpoint.export(
                Path(output_dir or self.args.output_dir) / checkpoint.FOLDER, self.critic.module
            )
        super().save_model(output_dir, _internal_call)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.critic is not None:
            self.critic.load_weights(Path(self.state.best_model_checkpoint) / checkpoint.FOLDER)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        rollouts.save(self, Path(output_dir))
        if self.args.kl_target is not None and self.args.should_save:
            (Path(output_dir) / _KL_FILE).write_text(json.dumps({"value": self.kl_controller.value}))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self.critic is not None:
            checkpoint.check(Path(resume_from_checkpoint))
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint_folder: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint_folder)
        if checkpoint_folder is None:
            return
        folder = Path(checkpoint_folder)
        if self.critic is not None:
            self.critic.load(folder / checkpoint.FOLDER)
        rollouts.load(self, folder)
        file = folder / _KL_FILE
        if self.args.kl_target is not None and file.exists():
            # else it is of a run without kl_target, and beta is where this one starts
            self.kl_controller.value = json.loads(file.read_text())["value"]


def _end_tokens(trainer: GRPOTrainer) -> list[int]:
    """Tokens that end a completion: a list of TRL's since 1.15, the tokenizer's one before."""
    if Version(trl.__version__) >= Version("1.15"):
        return list(trainer.eos_token_ids)
    return [trainer._tokenizer.eos_token_id]
