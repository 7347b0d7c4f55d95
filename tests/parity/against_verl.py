"""Our ``compat="verl"`` on the golden cases against the functions of whichever verl is imported.

Inputs are float32 tensors with a float mask, as verl's trainer has them. Each case is tried twice: as it stands, with
numbers at masked positions, and cleaned, with 0 there.
"""

import contextlib
import io
from types import SimpleNamespace

import numpy as np
import torch
from reference import cases, definitions, groups
from reference.tensors import arrays_of, tensors_of

import rl_estimators
from parity.comparing import TOLERANCE, row_of

VERL = {
    "gae": "gae",
    "reinforce_pp": "reinforce_plus_plus",
    "remax": "remax",
    "grpo": "grpo",
    "rloo": "rloo",
    "opo": "opo",
    "gpg": "gpg",
    "grpo_passk": "grpo_passk",
    "reinforce_pp_baseline": "reinforce_plus_plus_baseline",
    "gdpo": "gdpo",
}
DEFINITIONS = {**definitions.ESTIMATORS, **groups.ESTIMATORS}
ALONE = ("gae", "reinforce_pp", "remax")  # they compare nobody with anybody
COMPONENTS = ("one", "two", "three")
NEARLY_EQUAL = ("tie_0.7", "tie_1000.1", "offset_1000", "offset_close")
PLAIN = SimpleNamespace(gamma=1.0)


def batch(name, case, clean):
    """``(tensors, arrays)``: the case for us and verl in float32, and the same numbers in float64 for the definition."""
    asked = {"gae": ("values",), "reinforce_pp": (), "remax": ("reward_baselines",)}.get(name, ("index",))
    asked = ("token_level_rewards", "response_mask", *asked)
    tensors = tensors_of(case, asked, torch.float32, torch.float32)
    arrays = arrays_of(case, asked, torch.float32)
    if name == "gdpo":
        tensors["reward_components"] = torch.tensor(groups.components_of(case)).float()
        arrays["reward_components"] = tensors["reward_components"].double().numpy()
    if clean:
        for key in {"token_level_rewards", "values"} & set(asked):
            tensors[key] = tensors[key].masked_fill(tensors["response_mask"] == 0, 0.0)
            arrays[key] = np.where(case.response_mask, arrays[key], 0.0)
    return tensors, arrays


def upstream(core_algos, name, tensors):
    """``(advantages, returns)`` of verl's own function, called as its trainer calls it."""
    function = core_algos.get_adv_estimator_fn(VERL[name])
    given = {key: value.clone() for key, value in tensors.items() if isinstance(value, torch.Tensor)}
    if "index" in tensors:
        given["index"] = cases.uids(*tensors["index"])
    components = given.pop("reward_components", None)
    if name == "gae":
        return function(**given, gamma=1.0, lam=1.0)
    if name == "gdpo":
        mask, prompts = given["response_mask"], torch.ones(len(components), 2)
        given["non_tensor_batch"] = {key: components.numpy()[:, k] for k, key in enumerate(COMPONENTS)}
        given["batch"] = {"prompts": prompts, "attention_mask": torch.cat([prompts, mask], 1).long()}
        return function(**given, config={"gdpo_reward_keys": list(COMPONENTS)})
    if name == "grpo":  # its trainer calls it without config
        return function(**given)
    return function(**given, config={} if name == "grpo_passk" else PLAIN)


def compared(core_algos, name, case, clean):
    """One row, see :func:`parity.comparing.row_of`: advantages and returns at the valid tokens of a case."""
    tensors, arrays = batch(name, case, clean)
    ours = torch.stack(rl_estimators.estimate(name, **tensors))
    alike = torch.stack(rl_estimators.estimate(name, **tensors, compat="verl"))
    with np.errstate(all="ignore"):
        wanted = np.stack(DEFINITIONS[name](**arrays))
    row = {"estimator": name, "case": case.name if clean else f"{case.name}, as it stands"}
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = torch.stack(upstream(core_algos, name, tensors))
    except Exception as error:  # whatever it is, it is the answer
        known = {"Pass@k requires": "alone", "sum of the mask": "few", "element in the mask": "few"}
        said = [trap for words, trap in known.items() if words in str(error)]
        return {**row, "error": type(error).__name__, "trap": said[0] if said else "unexplained"}
    mask = case.response_mask
    rows = np.nonzero(mask)[0]
    row |= row_of(*(np.asarray(x, dtype=np.float64)[:, mask] for x in (theirs, alike, wanted, ours)))
    row["trap"] = trap(name, case, clean, row, rows[row.pop("at")] if len(rows) else 0)
    return row


def trap(name, case, clean, row, worst):
    """Why upstream is at odds with us or with the definition, the worst at the response ``worst``; None if it is not."""
    if max(row["difference"], row["from_definition"]) <= TOLERANCE:
        return None
    mask, rewards = case.response_mask, case.token_level_rewards
    if not np.isfinite(rewards[mask]).all():
        return "score"
    garbage = not np.isfinite(np.concatenate([rewards[~mask], case.values[~mask]])).all()
    if garbage and not clean and row["difference"] > TOLERANCE:
        return "padding"
    if name in ALONE:
        holes = not all((np.diff(np.flatnonzero(row)) == 1).all() for row in mask)
        return "reset" if name == "reinforce_pp" and holes else "unexplained"
    names = [groups.group_key(uid) for uid in case.index]
    reads_masked = not clean and name != "gdpo"
    if names.count(names[worst]) == 1 and not reads_masked:
        return "alone"
    if not mask.any(1).all() and not reads_masked and not (name == "gdpo" and row["difference"] <= TOLERANCE):
        return "empty"
    if reads_masked:
        return "masked"
    if row["difference"] <= TOLERANCE and name in ("gpg", "gdpo"):
        return name
    nearly = case.name in NEARLY_EQUAL or (name, case.name) == ("gdpo", "long_process")
    return "rounding" if nearly else "unexplained"


def probes(core_algos):
    """Rows of what the golden cases do not ask."""
    case = cases.BY_NAME["holes"]
    tensors, _ = batch("gae", case, clean=False)
    hole = ~case.response_mask
    own = rl_estimators.estimate("gae", **tensors).returns.numpy()[hole]
    theirs = upstream(core_algos, "gae", tensors)[1].numpy()[hole]
    yield numbers("gae", "holes, as it stands", "holes", theirs[0], 0.0, own[0])
    for name in ("gae", "reinforce_pp"):
        tensors, _ = batch(name, cases.BY_NAME["ragged_prefix"], clean=True)
        tensors["response_mask"] = tensors["response_mask"].bool()
        try:
            upstream(core_algos, name, tensors)
        except Exception as error:  # whatever it is, it is the answer
            row = {"estimator": name, "case": "ragged_prefix", "trap": "bool", "probe": True}
            yield {**row, "error": type(error).__name__}
    tensors, arrays = batch("grpo", cases.BY_NAME["leading_zero_uids"], clean=True)
    merged, _ = core_algos.compute_grpo_vectorized_outcome_advantage(
        tensors["token_level_rewards"], tensors["response_mask"], cases.uids(*tensors["index"])
    )
    own = rl_estimators.estimate("grpo", **tensors).advantages
    wanted = DEFINITIONS["grpo"](**arrays).advantages
    yield numbers("grpo", "leading_zero_uids", "uids", merged[0, 0], wanted[0, 0], own[0, 0])
    random = torch.Generator().manual_seed(0)
    rewards = (1e-3 * torch.rand(1, 1024, generator=random)).bfloat16()
    ones = torch.ones(1, 1024)
    given = {"token_level_rewards": rewards, "reward_baselines": torch.zeros(1).bfloat16()}
    theirs = upstream(core_algos, "remax", {**given, "response_mask": ones.bfloat16()})[1]
    own = rl_estimators.estimate("remax", **given, response_mask=ones).returns
    yield numbers(
        "remax", "1024 rewards in bfloat16", "bfloat16", theirs[0, 0], rewards.double().sum(), own[0, 0]
    )


def numbers(name, case, trap, upstream, definition, ours):
    at = {"upstream": float(upstream), "definition": float(definition), "ours": float(ours)}
    return {"estimator": name, "case": case, "trap": trap, "numbers": at, "probe": True}


def measure(chosen=(*cases.SHORT, *cases.LONG_CASES)):
    """All rows with the verl that is imported."""
    from verl.trainer.ppo import core_algos

    rows = [
        compared(core_algos, name, case, clean) for name in VERL for case in chosen for clean in (True, False)
    ]
    return [*rows, *probes(core_algos)]
