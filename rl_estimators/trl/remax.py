"""ReMax in TRL: the reward of the greedy completion as baseline.

Source: Li et al., ReMax, section 4, algorithm 1 (https://arxiv.org/abs/2310.10505), and the authors' code and scripts,
https://github.com/liziniu/ReMax, folder step3_rlhf_finetuning.
"""

from dataclasses import dataclass
from typing import ClassVar

from rl_estimators.trl.config import EstimatorConfig
from rl_estimators.trl.trainer import EstimatorTrainer

__all__ = ["ReMaxConfig", "ReMaxTrainer"]


@dataclass
class ReMaxConfig(EstimatorConfig):
    """One sampled completion a prompt, no ratio and no clip: the policy gradient itself.

    From algorithm 1: one completion a prompt, one update per batch (``num_iterations`` 1), no discount, the loss
    ``"reinforce"``. From the authors' code: the mean over tokens (``actor_loss_fn``), and the KL divergence in the
    reward, as k1, times 0.05 (``--kl_ctl 0.05`` in their scripts). Their learning rate, 1e-6, is TRL's default.

    Departures: a token pays for the KL divergence of what follows as well, as the objective's gradient has it,
    where their code charges each token its own alone. Their scripts also discount by 0.99, decay weights by 0.1 and
    follow a cosine; their code samples with top-p 0.9, of which the gradient of algorithm 1 knows nothing, and clips
    the score minus the baseline to [-5, 5].
    """

    num_generations: int | None = 1
    policy_loss: str = "reinforce"
    beta: float = 0.05
    kl_in_reward: bool = True
    kl_penalty: str = "k1"


class ReMaxTrainer(EstimatorTrainer):
    """The one thing that differs from REINFORCE: the prompt's greedy completion says what to expect.

    Generation costs one more completion per prompt, decoded in the same batch as the samples where transformers
    generates (see :mod:`rl_estimators.trl.greedy_batch`) and after them with vLLM; ``reward_funcs`` are called once
    more, for the greedy completions.
    """

    adv_estimator: ClassVar[str] = "remax"
    config_class: ClassVar[type[EstimatorConfig]] = ReMaxConfig
    _name = "ReMax"
    _paper: ClassVar[dict[str, str]] = {
        "title": "ReMax: A Simple, Effective, and Efficient Reinforcement Learning Method for Aligning Large Language Models",
        "id": "2310.10505",
    }
