"""Our ``compat="trl"`` on the golden cases against the trainers of whichever TRL is imported.

TRL has a number per completion, and groups of one size: of each case the responses that have a valid token, with the
sums of their rewards, stand in groups of two and of three in their order, what is left over dropped. The real
trainers do a step from generation on; the reward functions return the case's scores.
"""

import tempfile

import numpy as np
import torch
import toy
from reference import cases, definitions, groups

import rl_estimators
from parity.comparing import TOLERANCE, row_of

TRL = ("grpo", "rloo", "gdpo")
SIZES = (2, 3)
NAN = float("nan")
# TRL adds 1e-4 to a deviation where the papers add nothing or something small: a convention, not counted as an error.
OPTIONS = {"grpo": {"epsilon": 1e-4}, "rloo": {}, "gdpo": {"epsilon": 1e-4}}
DEFINITIONS = {"grpo": definitions.grpo, "rloo": groups.rloo, "gdpo": groups.gdpo}


def scores_of(case):
    """``(N, 1 + 3)`` of a case's responses with a valid token: the score, in fp32, and the components."""
    rows = case.response_mask.any(1)
    with np.errstate(invalid="ignore"):
        sums = np.where(case.response_mask, case.token_level_rewards, 0).sum(1)
    table = np.concatenate([sums[:, None], groups.components_of(case)], axis=1)
    return table[rows].astype(np.float32)


def trainer(name, size, model, folder):
    """A stock trainer of TRL's with the scores of a row of its data set as rewards."""
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    kind, config = (RLOOTrainer, RLOOConfig) if name == "rloo" else (GRPOTrainer, GRPOConfig)
    more = {"multi_objective_aggregation": "normalize_then_sum"} if name == "gdpo" else {}
    columns = (1, 2, 3) if name == "gdpo" else (0,)

    def reward(k):
        def function(scores, **_):
            return [None if np.isnan(row[k]) else row[k] for row in scores]

        function.__name__ = f"reward_{k}"
        return function

    settings = toy.settings(folder, per_device_train_batch_size=size, num_generations=size, **more)
    settings["max_completion_length"] = 1
    made = toy.make(kind, config(**settings), model, reward_funcs=[reward(k) for k in columns])
    made.model.train()
    return made


def step(made, table):
    """``(N,)`` TRL's advantages of completions with these scores."""
    inputs = [{"prompt": "1", "scores": row} for row in table.tolist()]
    return made._generate_and_score_completions(inputs)["advantages"].double().numpy()


def estimated(name, table, size, **options):
    """``(2, N)`` ours: responses of a token each."""
    scores = torch.tensor(table[:, :1])
    given = {"token_level_rewards": scores, "response_mask": torch.ones_like(scores)}
    if name == "gdpo":
        given["token_level_rewards"] = torch.zeros_like(scores)
        given["reward_components"] = torch.tensor(table[:, 1:])
    index = [row // size for row in range(len(table))]
    return (
        torch.stack(rl_estimators.estimate(name, **given, index=index, **options))[:, :, 0].double().numpy()
    )


def defined(name, table, size):
    """``(2, N)`` by the definition."""
    scores = table[:, :1].astype(np.float64)
    given = {"token_level_rewards": scores, "response_mask": np.ones(scores.shape, dtype=bool)}
    if name == "gdpo":
        given["token_level_rewards"] = np.zeros_like(scores)
        given["reward_components"] = table[:, 1:].astype(np.float64)
    index = [row // size for row in range(len(table))]
    return np.stack(DEFINITIONS[name](**given, index=index, **OPTIONS[name]))[:, :, 0]


def measured(name, size, model, folder, chosen):
    """Rows of one estimator and group size; for `gdpo` a step for each case, as it normalises over the batch."""
    made = trainer(name, size, model, folder)
    tables = {case.name: scores_of(case) for case in chosen}
    tables = {key: table[: len(table) // size * size] for key, table in tables.items() if len(table) >= size}
    if name == "gdpo":
        advantages = {key: step(made, table) for key, table in tables.items()}
    else:  # groups know nothing of each other: one step for all
        parts = np.cumsum([len(table) for table in tables.values()])[:-1]
        everything = np.split(step(made, np.concatenate([*tables.values()])), parts)
        advantages = dict(zip(tables, everything, strict=True))
    for key, table in tables.items():
        theirs = np.stack([advantages[key]] * 2)
        with np.errstate(all="ignore"):
            wanted = defined(name, table, size)
        alike, ours = (
            estimated(name, table, size, compat="trl"),
            estimated(name, table, size, **OPTIONS[name]),
        )
        row = {"estimator": name, "case": f"{key}, groups of {size}", **row_of(theirs, alike, wanted, ours)}
        row.pop("at")
        yield row | {"trap": trap(name, key, table, row)}


def trap(name, case, table, row):
    """Why TRL is at odds with us or with the definition; None if it is not."""
    # gdpo: TRL adds 1e-4 to the batch's deviation as well, the definition 1e-8 to the variance
    convention = 2e-3 if name == "gdpo" else TOLERANCE
    if row["difference"] <= TOLERANCE and row["from_definition"] <= convention:
        return None
    used = table[:, 1:] if name == "gdpo" else table[:, :1]
    if np.isnan(used).any() and name == "gdpo":
        return "component"
    if not np.isfinite(used).all():
        return "score"
    nearly = case.startswith(("tie", "offset")) or name == "gdpo"
    return "rounding" if nearly else "unexplained"


def measure(model, chosen=(*cases.SHORT, *cases.LONG_CASES), names=TRL):
    """All rows with the TRL that is imported; ``model`` is the folder of a tiny one."""
    with tempfile.TemporaryDirectory() as folder:
        return [
            row for name in names for size in SIZES for row in measured(name, size, model, folder, chosen)
        ]
