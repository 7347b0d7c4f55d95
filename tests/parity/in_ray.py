"""A Ray worker's answers, saved for ``test_ray_worker.py``: ``python in_ray.py FILE RAYS_FOLDER``."""

import sys

import ray
import torch

from parity import recorded, verl_side
from rl_estimators import list_adv_est, list_policy_loss, list_value_loss


@ray.remote
def estimate(batches):
    """Every estimator on a batch that came through Ray's store, and who had loaded the plugin."""
    import os

    import verl  # noqa: F401 - loads the plugin by its entry point, as in a worker of verl's

    loaded = "rl_estimators.verl.plugin" in sys.modules
    found = {name: verl_side.advantages(name, given=given) for name, given in batches.items()}
    return os.getpid(), loaded, found


@ray.remote
def losses():
    """Every loss, averaged over tokens."""
    found = {name: verl_side.policy_loss(name, "token-mean") for name in recorded.POLICY_OPTIONS}
    return found | {name: verl_side.value_loss(name, "token-mean") for name in recorded.VALUE_OPTIONS}


def main(file, folder):
    import os

    ray.init(
        address="local", num_cpus=1, include_dashboard=False, _temp_dir=folder, object_store_memory=80_000_000
    )
    batches = {name: verl_side.batch(name) for name in list_adv_est()}
    worker, loaded, advantages = ray.get(estimate.remote(batches))
    found = {"advantages": advantages, "losses": ray.get(losses.remote()), "loaded": loaded}
    assert set(found["losses"]) == {*list_policy_loss(), *list_value_loss()}
    torch.save({**found, "elsewhere": worker != os.getpid()}, file)
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
