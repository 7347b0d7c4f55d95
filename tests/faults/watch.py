"""What the faults' tests look at: a trainer's weights after each optimizer step, and whether all are numbers."""

import torch
import toy
from transformers import TrainerCallback


class AfterEachStep(TrainerCallback):
    """Weights after each optimizer step, those before the first one in front: of the policy, and of a critic."""

    def __init__(self, trainer):
        self.trainer = trainer
        self.policy, self.critic = [], []
        trainer.add_callback(self)
        self._take()

    def _take(self):
        self.policy.append(toy.weights(self.trainer))
        if self.trainer.critic is not None:
            module = self.trainer.critic.module
            self.critic.append({name: x.detach().clone() for name, x in module.state_dict().items()})

    def on_step_end(self, args, state, control, **kwargs):
        self._take()


def equal(one, other):
    """Whether two sets of weights are the same to the bit."""
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def finite(weights):
    return all(bool(x.isfinite().all()) for x in weights.values())


def column(trainer, name):
    """A metric in each row of the log that is of an optimizer step."""
    return [row[name] for row in trainer.state.log_history if name in row]
