"""Which estimators: how a user writes them, and what is said of slips."""

import pytest

from rl_estimators.compare import all_choices, read_choices
from rl_estimators.errors import InputError, UnknownNameError


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("grpo, rloo", [("grpo", "grpo", {}), ("rloo", "rloo", {})]),
        (
            "grpo:norm_by_std=false,compat=verl,rloo",
            [
                ("grpo:norm_by_std=false,compat=verl", "grpo", {"norm_by_std": False, "compat": "verl"}),
                ("rloo", "rloo", {}),
            ],
        ),
        (
            "grpo,grpo:epsilon=1e-4,grpo:epsilon=0.5",
            [
                ("grpo", "grpo", {}),
                ("grpo:epsilon=1e-4", "grpo", {"epsilon": 1e-4}),
                ("grpo:epsilon=0.5", "grpo", {"epsilon": 0.5}),
            ],
        ),
        (
            'gae:lam=0.95,whitening={"ddof": 0, "eps": 1},mc',
            [
                ('gae:lam=0.95,whitening={"ddof": 0, "eps": 1}', "gae", {"lam": 0.95, "whitening": {"ddof": 0, "eps": 1}}),
                ("mc", "mc", {}),
            ],
        ),
        (
            "gae:whitening.ddof=0,whitening.eps=1",
            [("gae:whitening.ddof=0,whitening.eps=1", "gae", {"whitening": {"ddof": 0, "eps": 1}})],
        ),
        (
            "gdpo:reward_keys=[acc,len],weights=[1,2]",
            [("gdpo:reward_keys=[acc,len],weights=[1,2]", "gdpo", {"reward_keys": ["acc", "len"], "weights": [1, 2]})],
        ),
        ("gpg:alpha=none,f_norm=2", [("gpg:alpha=none,f_norm=2", "gpg", {"alpha": None, "f_norm": 2})]),
        ("reinforce:masked_rewards=drop", [("reinforce:masked_rewards=drop", "reinforce", {"masked_rewards": "drop"})]),
    ],
)  # fmt: skip
def test_as_written(words, found):
    assert [(choice.label, choice.name, dict(choice.options)) for choice in read_choices([words])] == found


def test_given_several_times():
    assert [choice.label for choice in read_choices(["grpo", "rloo,mc"])] == ["grpo", "rloo", "mc"]


def test_all_there_are():
    assert {"grpo", "gae", "remax"} <= {choice.name for choice in all_choices()}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("", "--estimators names none"),
        ("grpo,grpo", "--estimators names 'grpo' twice"),
        ("grpo:norm_by_sdt=false", r"grpo has no option 'norm_by_sdt'\. Did you mean 'norm_by_std'"),
        ("grpo:masked_reward=carry", r"grpo has no option 'masked_reward'\. Did you mean 'masked_rewards'"),
        ("grpo:norm_by_std=0", "norm_by_std is 0, expected True or False"),
        ("grpo:values=3", "values is an input, which the file has to hold, and no option"),
        ("epsilon=3", "begins with 'epsilon=3', expected the name of an estimator"),
        ("grpo:epsilon", "'epsilon' is no option, expected NAME=VALUE"),
        ("grpo:epsilon=1,epsilon=2", "epsilon is given twice"),
        ("gae:whitening=1,whitening.ddof=0", "whitening is given as a value and by its entries"),
    ],
)
def test_slips(words, message):
    with pytest.raises(InputError, match=message):
        read_choices([words])


def test_an_unknown_estimator():
    with pytest.raises(
        UnknownNameError, match=r"no advantage estimator is named 'gropo'\. Did you mean 'grpo'"
    ):
        read_choices(["gropo"])
