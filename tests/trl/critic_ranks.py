"""What each process of a run with a critic does; ``test_critic_processes.py`` compares what they leave behind.

python -m torch.distributed.run --nproc_per_node 2 critic_ranks.py MODEL FOLDER
"""

import os
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))
import critics
import toy
from accelerate.utils import gather

from rl_estimators.trl import rollouts

ROWS = 8
CASES = {
    "separate": {},
    "separate, small micro-batches": {"critic_micro_batch_size": 1, "gradient_checkpointing": True},
    "shared": {"critic": "shared", "vf_coef": 0.5},
}


def updates(model, folder, rank, world, **fields):
    """Three optimizer steps of two micro-batches on batches made by hand; the critic's weights and what was logged."""
    rows = ROWS // world // 2
    # without the larger epsilon, Adam enlarges what rounding leaves of the smallest gradients
    trainer = critics.make(folder, model, per_device_train_batch_size=rows, adam_epsilon=1e-4, **fields)
    policy = trainer.accelerator.prepare(trainer.model)
    trainer.critic.create_scheduler(10)
    trainer.current_gradient_accumulation_steps = trainer.args.steps_per_generation = 2
    for step in range(3):
        found = critics.batch(ROWS, seed=step)
        found["advantages"] = torch.linspace(-1, 1, ROWS)
        for number in range(2):
            first = rank * ROWS // world + number * rows
            inputs = critics.part(found, slice(first, first + rows))
            trainer.accelerator.gradient_state._set_sync_gradients(number == 1)
            context = trainer.accelerator.no_sync(policy) if number == 0 else torch.enable_grad()
            with context:
                trainer._compute_loss(policy, inputs).backward()
            trainer.critic.step()
    found = {name: p.detach().clone() for name, p in trainer.critic.module.named_parameters()}
    backbone = {f"policy's {name}": tensor for name, tensor in critics.gradients(trainer.model).items()}
    metrics = {
        name: list(numbers) for name, numbers in trainer._metrics["train"].items() if "critic/" in name
    }
    return {"weights": found, "metrics": metrics, "policy": backbone}


def trained(model, folder, **fields):
    """A run of some steps, and a new critic that has loaded what it saved: the weights on all processes.

    (transformers itself cannot resume on several CPU processes: it loads the policy's optimizer to "cpu:1".)
    """
    fields = {
        "max_steps": 3,
        "gradient_accumulation_steps": 2,
        "save_strategy": "steps",
        "save_steps": 3,
        "num_iterations": 2,  # 6 micro-batches are in the middle of the second generation batch
        **fields,
    }
    run = toy.train(critics.PPOTrainer, critics.config(folder, **fields), model)
    again = toy.make(critics.PPOTrainer, critics.config(folder, **fields), model)
    again.critic.create_scheduler(3)
    torch.distributed.barrier()  # only the first process writes
    again.critic.load(folder / "checkpoint-3" / "critic")
    rollouts.load(again, folder / "checkpoint-3")
    batches = [
        [part["completion_ids"] for part in trainer._buffered_inputs] for trainer in (run.trainer, again)
    ]
    found = {}
    for trainer in (run.trainer, again):
        for name, p in trainer.critic.module.named_parameters():
            found.setdefault(name, []).append(gather(p.detach()[None].contiguous()))
    steps = (run.trainer._step, again._step)
    return {"weights": found, "values": run.column("critic/values_mean"), "batches": batches, "steps": steps}


def main():
    torch.set_num_threads(1)
    model, folder = map(Path, sys.argv[1:])
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    found = {
        name: updates(model, folder / "updates", rank, world, **fields) for name, fields in CASES.items()
    }
    if world > 1:
        found["trained"] = {
            name: trained(model, folder / name, **CASES[name]) for name in ("separate", "shared")
        }
        found["world"] = torch.distributed.get_world_size()
    torch.save(found, folder / f"{rank}_of_{world}.pt")


if __name__ == "__main__":
    main()
