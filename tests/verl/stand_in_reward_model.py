"""Loaded into verl's processes by a test: `stand_in_replica` answers for verl's engine named ``vllm``.

Set ``VERL_USE_EXTERNAL_MODULES=stand_in_reward_model``. verl asks a discriminative reward model by the HTTP
interface of vLLM or SGLang, chosen by the name of the engine, so the stand-in takes one of these names.
"""

from rl_estimators.imports import when_imported


def opinion(prompt, answer):
    """What this reward model thinks: digits of the prompt that the answer has, less 1/8 for each digit given.

    Nothing that a rule-based reward of the smoke task would give; exact in float32; may be negative.
    """
    given = [sign for sign in answer if sign.isdigit()]
    return len({*given} & {*prompt}) - len(given) / 8


def load():
    import stand_in_replica

    return stand_in_replica.StandIn


when_imported(
    "verl.workers.rollout.replica", lambda module: module.RolloutReplicaRegistry.register("vllm", load)
)
