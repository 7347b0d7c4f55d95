"""The two sizes of the model, each with the learning rates that suit it."""

from dataclasses import dataclass

__all__ = ["SMALL", "TINY", "Size"]


@dataclass(frozen=True)
class Size:
    """A Qwen2 and how it is taught; learning rates are Adam's.

    Attributes:
        hidden: width of the residual stream; an attention head has 16 channels in TINY, 64 in SMALL.
        warm_up_steps: on examples, before reinforcement learning.
        warm_up_lr: the highest of them, for the examples.
        lr: of the policy, in reinforcement learning.
        critic_lr: of the critic.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    warm_up_steps: int
    warm_up_lr: float
    lr: float
    critic_lr: float


TINY = Size(64, 256, 1, 4, 250, 3e-3, 1e-3, 3e-3)  # 82 thousand parameters: seconds on a processor core
SMALL = Size(512, 1536, 6, 8, 250, 5e-4, 1e-4, 3e-4)  # 21 million: for a GPU
