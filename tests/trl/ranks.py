"""What each process of a run of two does; ``test_processes.py`` starts it and compares what it leaves behind.

python -m torch.distributed.run --nproc_per_node 2 ranks.py MODEL FOLDER
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import toy
from trl import GRPOConfig, GRPOTrainer

from rl_estimators import list_adv_est
from rl_estimators.diagnostics import PREFIX
from rl_estimators.registry import ADV_ESTIMATORS
from rl_estimators.trl import EstimatorConfig, EstimatorTrainer, advantages, counts, policy
from rl_estimators.trl.rewards import Scored

# Three completions a process and groups of two: one group straddles the processes.
STRADDLING = {"per_device_train_batch_size": 3, "num_generations": 2}
EXACT = {
    "default": {},
    "kl_and_several_passes": {
        "beta": 0.04,
        "gradient_accumulation_steps": 2,
        "steps_per_generation": 4,
        "num_iterations": 2,
    },
    "sequence_level": {"importance_sampling_level": "sequence", "loss_type": "grpo"},
    "truncated_masked": {"mask_truncated_completions": True, "max_completion_length": 4},
}
LOSSES = (
    ("ppo_clip", "token-mean"),
    ("gspo", "seq-mean-token-mean"),
    ("reinforce", "seq-mean-token-sum-norm"),
)
ROWS, WIDTHS = 6, (5, 3, 4, 7, 2, 6)  # the widest completion is the second process's


class FakeCritic:
    """Values that were drawn beforehand."""

    def values(self, batch):
        return batch["drawn_values"], batch["drawn_after"]

    def log_rollout(self, *_):
        pass


def drawn():
    """A batch of six completions with tool output inside, one cut off, one without a reward, and its rewards."""
    generator = torch.Generator().manual_seed(3)
    width = max(WIDTHS)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator)

    mask = torch.arange(width) < torch.tensor(WIDTHS)[:, None]
    tool = torch.ones(ROWS, width, dtype=torch.long)
    tool[0, 1:3] = tool[3, 2:4] = 0
    batch = {
        "completion_mask": mask.long(),
        "tool_mask": tool,
        "old_per_token_logps": -numbers(ROWS, width).abs(),
        "ref_per_token_logps": -numbers(ROWS, width).abs(),
        "sampling_per_token_logps": -numbers(ROWS, width).abs(),
        "drawn_values": numbers(ROWS, width),
        "drawn_after": numbers(ROWS),
    }
    rewards = numbers(ROWS, 2).abs() + 3  # maxrl divides by scores, which must not be negative
    rewards[4, 0] = torch.nan
    rewards[5] = torch.nan
    return batch, rewards, torch.tensor([0, 0, 1, 0, 1, 0]).bool()


def scored_rows(rank, world):
    """The rows of a process, cut to its own widest completion, as TRL hands them to us."""
    batch, rewards, truncated = drawn()
    share = ROWS // world
    own = slice(rank * share, (rank + 1) * share)
    width = max(WIDTHS[own])
    local = {name: tensor[own, :width] if tensor.ndim == 2 else tensor[own] for name, tensor in batch.items()}
    tokens = [torch.arange(float(n)) / 10 for n in WIDTHS[own]]
    scored = Scored(rewards, truncated[own], [tokens], torch.arange(ROWS) / 3.0)
    return local, scored


def advantages_of(trainer, name, rank, world):
    """This process's advantages and returns from one estimator, by ``advantages.add`` of a real trainer."""
    trainer.estimator = ADV_ESTIMATORS.spec(name)
    trainer.critic = FakeCritic() if trainer.wants("values") else None
    trainer.args.bootstrap_truncated = trainer.wants("truncated")
    batch, scored = scored_rows(rank, world)
    if not trainer.decodes_greedily:
        scored.reward_baselines = None
    found = advantages.add(trainer, batch, scored)
    logged = {
        key: numbers.pop() for key, numbers in trainer._metrics["train"].items() if key.startswith(PREFIX)
    }
    return {key: found[key] for key in ("advantages", "returns") if key in found} | {"logged": logged}


def everything(model, folder, rank, world):
    """Advantages of every estimator, without and with the KL divergence in the rewards."""
    found = {}
    for charged in (False, True):
        kl = {"kl_in_reward": True, "beta": 0.1} if charged else {}
        size = {"per_device_train_batch_size": ROWS // world, "num_generations": 2}
        config = EstimatorConfig(**toy.settings(folder, **size, **kl))
        trainer = toy.make(EstimatorTrainer, config, model, reward_funcs=[toy.reward, toy.reward])
        trainer.model.train()
        for name in list_adv_est():
            found[name, charged] = advantages_of(trainer, name, rank, world)
    return found


def losses(model, folder, rank, world):
    """The gradient of each loss, averaged over processes as DDP does, each with its own rows of one batch."""
    found = {}
    for name, mode in LOSSES:
        share = ROWS // world
        size = {"per_device_train_batch_size": share, "num_generations": 2}
        config = EstimatorConfig(
            **toy.settings(folder, **size), policy_loss=name, loss_agg_mode=mode, beta=0.1, entropy_coef=0.01
        )
        trainer = toy.make(EstimatorTrainer, config, model)
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = 1
        batch = toy.policy_batch(trainer, ROWS)
        batch["ref_per_token_logps"] = batch["old_per_token_logps"] - 0.1
        own = toy.part(batch, slice(rank * share, (rank + 1) * share))
        counts.add_rows(trainer, own)
        loss = policy.loss(trainer, trainer.model, own)
        loss.backward()
        both = torch.cat([toy.gradient(trainer), loss.detach()[None]])
        found[name, mode] = trainer.accelerator.reduce(both, reduction="mean")
    return found


def updates(model, folder, rank, world):
    """The ratios of a step on one batch, each process with its own rows."""
    share = ROWS // world
    size = {"per_device_train_batch_size": share, "num_generations": 2}
    trainer = toy.make(EstimatorTrainer, EstimatorConfig(**toy.settings(folder, **size)), model)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    own = toy.part(toy.policy_batch(trainer, ROWS), slice(rank * share, (rank + 1) * share))
    trainer._compute_loss(trainer.model, own)
    trainer.diagnostics.step()
    return {key: numbers[0] for key, numbers in trainer._metrics["train"].items() if key.startswith(PREFIX)}


def one_generation(model, folder):
    """A completion a prompt, and one a process: trained and evaluated; the number of rewards of each kind."""
    size = {"per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "num_generations": 1}
    steps = {"max_steps": 2, "gradient_accumulation_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    config = EstimatorConfig(**toy.settings(folder, **size, **steps), adv_estimator="reinforce_pp")
    assert config.num_generations == 1
    run = toy.train(EstimatorTrainer, config, model)
    return len(run.column("reward")), len(run.column("eval_reward"))


def exact(model, folder):
    """Runs of TRL's trainer and of ours are equal on every process; what was compared."""
    compared = {}
    for name, fields in EXACT.items():
        fields = toy.settings(folder, max_steps=6, **{**STRADDLING, **fields})
        theirs = toy.train(GRPOTrainer, GRPOConfig(**fields), model)
        config = EstimatorConfig(**fields, adv_estimator="grpo", adv_estimator_kwargs={"compat": "trl"})
        ours = toy.train(EstimatorTrainer, config, model)
        toy.same(ours, theirs)
        compared[name] = theirs.column("grad_norm")
    return compared


def main():
    torch.set_num_threads(1)
    model, folder = map(Path, sys.argv[1:])
    found = {"exact": exact(model, folder)}
    rank, world = torch.distributed.get_rank(), torch.distributed.get_world_size()
    found |= {"world": world, "advantages": everything(model, folder, rank, world)}
    found["one_generation"] = one_generation(model, folder)
    found["losses"] = losses(model, folder, rank, world)
    found["updates"] = updates(model, folder, rank, world)
    torch.save(found, folder / f"{rank}.pt")


if __name__ == "__main__":
    main()
