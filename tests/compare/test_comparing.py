"""From rollouts to numbers: estimators side by side, against numpy, and what the sums of them say."""

import json
import math

import numpy as np
import pytest
import torch
from compare.batches import GROUPS, INDEX, LENGTHS, SCORES, rollouts

from rl_estimators import registry
from rl_estimators.compare import Reader, all_choices, compare, read_choices
from rl_estimators.compare.overall import add_up
from rl_estimators.compare.summary import summarise
from rl_estimators.errors import InputError


def grouped(fill):
    """A number for each response, from its group's scores: ``fill(scores) -> numbers``."""
    found = np.zeros(len(SCORES))
    for name in dict.fromkeys(INDEX):
        rows = np.array([own == name for own in INDEX])
        found[rows] = fill(SCORES[rows])
    return found


def grpo(scores):
    """Deviations from the mean over the unbiased deviation + 1e-6; 0 where all are equal, or alone."""
    if len(scores) < 2 or scores.std() == 0:
        return np.zeros(len(scores))
    return (scores - scores.mean()) / (scores.std(ddof=1) + 1e-6)


def rloo(scores):
    return scores - (scores.sum() - scores) / (len(scores) - 1) if len(scores) > 1 else np.zeros(1)


def reinforce_pp():
    """Every token has its response's score: whitened over tokens, each response counting by its length."""
    tokens = np.repeat(SCORES, LENGTHS)
    return (SCORES - tokens.mean()) / np.sqrt(tokens.var(ddof=1) + 1e-8)


EXPECTED = {"grpo": grouped(grpo), "rloo": grouped(rloo), "reinforce_pp": reinforce_pp()}


@pytest.fixture
def summary():
    return summarise(compare(rollouts(), read_choices(["grpo,rloo,reinforce_pp"])))


class TestRunning:
    def test_each_estimator_against_numpy(self, summary):
        for name, expected in EXPECTED.items():
            np.testing.assert_allclose(summary.columns[name], expected, atol=1e-6)

    def test_options(self):
        (plain,) = compare(rollouts(), read_choices(["grpo:norm_by_std=false"])).advantages.values()
        expected = grouped(lambda scores: scores - scores.mean())
        np.testing.assert_allclose(plain[:, 0].numpy(), expected, atol=1e-6)

    def test_what_lacks_its_inputs_is_named_with_them(self):
        compared = compare(rollouts(), read_choices(["grpo,gae,remax"]))
        assert list(compared.advantages) == ["grpo"]
        assert compared.not_run["gae"] == "the rollouts lack values, the critic's value before each token"
        assert compared.not_run["remax"].startswith(
            "the rollouts lack reward_baselines, reward of the prompt's greedy"
        )

    def test_with_a_critic(self):
        """TD errors with gamma 1: r + V' - V, here -.5 at each token but the last, r - .5 there."""
        values = torch.full((len(SCORES), 4), 0.5)
        given = rollouts(values=values)
        (found,) = compare(given, read_choices(["td:whiten=false"])).advantages.values()
        mask = given.inputs["response_mask"]
        last = torch.arange(4) == mask.sum(-1, keepdim=True) - 1
        expected = torch.where(last, torch.tensor(SCORES)[:, None].float() - 0.5, 0.0)
        assert torch.equal(found, torch.where(mask, expected, 0))

    def test_all_that_can_run_do(self):
        compared = compare(rollouts(), all_choices())
        assert {"grpo", "rloo", "reinforce", "opo", "maxrl"} <= {*compared.advantages}
        assert {"gae", "mc", "remax"} <= {*compared.not_run}
        assert "gdpo needs rewards to take apart" in compared.not_run["gdpo"]

    def test_a_wrong_value_of_an_option_is_an_error(self):
        with pytest.raises(InputError, match="--estimators grpo:epsilon=-1: grpo: epsilon is -1"):
            compare(rollouts(), read_choices(["grpo:epsilon=-1"]))

    def test_options_are_not_to_blame_for_what_is_missing(self):
        assert "gdpo needs" in compare(rollouts(), read_choices(["gdpo:ddof=0"])).not_run["gdpo:ddof=0"]

    def test_what_somebody_elses_estimator_raises_is_named(self, monkeypatch):
        def theirs(token_level_rewards, response_mask):
            raise ZeroDivisionError("no luck")

        specs = {**registry.ADV_ESTIMATORS._specs}
        monkeypatch.setattr(registry.ADV_ESTIMATORS, "_specs", specs)
        registry.ADV_ESTIMATORS.register("theirs")(theirs)
        compared = compare(rollouts(), read_choices(["theirs,grpo"]))
        assert compared.not_run["theirs"].endswith("failed: ZeroDivisionError: no luck")
        assert list(compared.advantages) == ["grpo"]

    def test_a_failed_score_is_left_out_and_counted(self):
        scores = SCORES.copy()
        scores[0] = math.nan
        compared = compare(rollouts(scores), read_choices(["grpo,reinforce_pp"]))
        assert compared.excluded == {"grpo": 1, "reinforce_pp": 1}
        for advantages in compared.advantages.values():
            assert not advantages[0].any()
            assert torch.isfinite(advantages).all()
        assert not compared.advantages["grpo"][1:4].any()  # of its group all that count are wrong

    def test_a_reward_on_a_tools_output_is_carried_as_in_training(self):
        given = rollouts([1.0, 0], ["p", "p"], [3, 3])
        given.inputs["response_mask"][0, 2] = False
        (found,) = compare(given, read_choices(["rloo"])).advantages.values()
        assert found.tolist() == [[1, 1, 0], [-1, -1, -1]]

    def test_inputs_stay_as_they_are(self):
        given = rollouts()
        before = {name: given.inputs[name].clone() for name in ("token_level_rewards", "response_mask")}
        summarise(compare(given, all_choices()))
        assert all(torch.equal(given.inputs[name], tensor) for name, tensor in before.items())


class TestSums:
    def test_kinds_of_prompts(self, summary):
        kinds = {prompt.name: prompt.kind for prompt in summary.prompts}
        assert kinds == {
            "mixed": "mixed",
            "half": "mixed",
            "wrong": "wrong",
            "right": "right",
            "alone": "single",
        }
        assert [prompt.mean for prompt in summary.prompts] == [0.25, 0.5, 0, 1, 1]

    def test_one_score_everywhere_is_neither_right_nor_wrong(self):
        found = summarise(compare(rollouts([2.0, 2], ["p", "p"], [1, 1]), read_choices(["grpo"])))
        assert [prompt.kind for prompt in found.prompts] == ["same"]

    def test_shares(self, summary):
        """Of 12 responses 6 have the advantage 0, with 12 of 25 tokens; of 5 prompts 2 carry all."""
        row = add_up([summary]).rows["grpo"]
        zero = EXPECTED["grpo"] == 0
        lengths = np.array(LENGTHS)
        assert zero.sum() == 6
        assert row.zero_responses == 0.5
        assert row.zero_tokens == lengths[zero].sum() / lengths.sum()
        assert row.praised_tokens == lengths[EXPECTED["grpo"] > 0].sum() / lengths.sum()
        assert row.carrying == 0.4
        assert row.quiet == 2
        weights = np.abs(EXPECTED["grpo"]) * lengths
        of_mixed = weights[:4].sum() / weights.sum()
        assert row.largest == pytest.approx(max(of_mixed, 1 - of_mixed), rel=1e-6)
        assert row.spread == pytest.approx(np.repeat(EXPECTED["grpo"], LENGTHS).std(), rel=1e-6)

    def test_batch_wide_estimators_learn_from_an_all_wrong_prompt(self, summary):
        rows = add_up([summary]).rows
        assert rows["rloo"].quiet == 2
        assert rows["reinforce_pp"].quiet == 0

    def test_signs(self, summary):
        """reinforce_pp praises what scored, rloo what scored more than its siblings: never the opposite."""
        opposite = np.sign(EXPECTED["rloo"]) * np.sign(EXPECTED["reinforce_pp"]) < 0
        assert summary.signs[1, 2] == summary.signs[2, 1] == opposite.mean()
        assert summary.signs.diagonal().tolist() == [0, 0, 0]

    def test_several_batches(self, summary):
        """A second one twice as long, other scores: shares of all responses, the mean of rank agreements."""
        scores = np.array([5.0, 1, 1, 3])
        other = summarise(compare(rollouts(scores, "aabb", [2, 3, 1, 1], 2), read_choices(["rloo,grpo"])))
        overall = add_up([summary, other])
        assert list(overall.rows) == ["grpo", "rloo", "reinforce_pp"]
        assert overall.rows["reinforce_pp"].batches == 1
        row = overall.rows["rloo"]
        assert row.responses == 16
        assert row.zero_responses == 6 / 16
        tokens = np.concatenate(
            [np.repeat(EXPECTED["rloo"], LENGTHS), np.repeat([4.0, -4, -2, 2], [2, 3, 1, 1])]
        )
        assert row.spread == pytest.approx(tokens.std(), rel=1e-6)
        assert overall.ranks[0, 1] == pytest.approx((summary.ranks[0, 1] + other.ranks[1, 0]) / 2)
        assert overall.ranks[0, 2] == summary.ranks[0, 2]
        assert overall.kinds == {"mixed": 4, "right": 1, "wrong": 1, "same": 0, "single": 1}

    def test_the_spread_of_equal_advantages_is_exactly_0(self):
        found = summarise(compare(rollouts([0.1] * 4, "abcd", [1, 5, 3, 2]), read_choices(["reinforce"])))
        assert add_up([found, found]).rows["reinforce"].spread == 0

    def test_carriers_are_those_that_carry(self, summary):
        names = [one.prompts[at].name for one, at in add_up([summary], shown=2).carriers]
        means = {
            name: np.mean([summary.shares[own][at] for own in summary.shares])
            for at, name in enumerate(GROUPS)
        }
        assert names == sorted(means, key=lambda name: -means[name])[:2]

    def test_contested(self):
        """The second is praised by one and blamed by the other; of its two twins one is told."""
        scores, index = [0.0, 0.4, 0, 0.4, 1, 1], ["a", "a", "b", "b", "c", "c"]
        found = summarise(compare(rollouts(scores, index, [1] * 6), read_choices(["rloo,reinforce_pp"])), 3)
        first, second = found.contested[:2]
        assert {first.row, second.row} == {1, 3}
        assert first.heat > 0.1
        assert first.alike == 0
        whole = (np.array(scores) - np.mean(scores)) / np.std(scores, ddof=1)
        assert first.advantages == {
            "rloo": pytest.approx(0.4),
            "reinforce_pp": pytest.approx(whole[1], rel=1e-5),
        }
        third = found.contested[2]
        assert (third.row, third.alike) == (4, 1)  # 0 under rloo, praised by the other, as its sibling

    def test_opposite_verdicts_count_more_than_distance(self):
        """The second: 0.2 of the largest under rloo, -0.6 under the other. The last: 0 and 1, farther but not opposite."""
        scores, index = [0.0, 0.4, 0, 2, 3, 3], ["a", "a", "b", "b", "c", "c"]
        found = summarise(compare(rollouts(scores, index, [1] * 6), read_choices(["rloo,reinforce_pp"])))
        first, second = found.contested[:2]
        assert (first.row, second.row) == (1, 4)
        assert first.heat == pytest.approx(0.2, rel=1e-5)
        assert first.apart == pytest.approx(0.2 + (1.4 - 0.4) / 1.6, rel=1e-5)
        assert (second.heat, second.apart) == (0, 1)

    def test_sign_disagreements_of_batches_weigh_by_their_responses(self):
        """In the first batch 1 of 6 responses is in dispute, in the second none of 2."""
        names = read_choices(["rloo,reinforce_pp"])
        first = summarise(compare(rollouts([0.0, 0.4, 0, 2, 3, 3], list("aabbcc"), [1] * 6), names))
        second = summarise(compare(rollouts([0.0, 1], ["a", "a"], [1, 1]), names))
        assert first.signs[0, 1] == pytest.approx(1 / 6)
        assert add_up([first, second]).signs[0, 1] == pytest.approx(1 / 8)

    def test_nothing_counts(self):
        found = summarise(compare(rollouts([math.nan] * 2, "aa", [1, 1]), read_choices(["grpo,reinforce"])))
        row = add_up([found]).rows["grpo"]
        assert (row.zero_responses, row.excluded, row.largest) == (1, 2, 0)
        assert found.contested == []
        assert [prompt.kind for prompt in found.prompts] == ["single"]

    def test_somebody_elses_nan_counts_as_no_advantage_and_is_told(self, monkeypatch):
        def theirs(token_level_rewards, response_mask):
            return token_level_rewards * math.nan, token_level_rewards

        monkeypatch.setattr(registry.ADV_ESTIMATORS, "_specs", {**registry.ADV_ESTIMATORS._specs})
        registry.ADV_ESTIMATORS.register("theirs")(theirs)
        found = summarise(compare(rollouts(), read_choices(["theirs"])))
        assert add_up([found]).rows["theirs"].zero_tokens == 1
        (note,) = found.rollouts.notes
        assert note.startswith(
            "theirs gives 12 of 12 responses an advantage that is NaN or infinite, with which"
        )


def test_verls_columns_reach_an_estimator_that_reads_them(tmp_path):
    """GDPO of one reward: normalised within the prompt, then over the batch."""
    rows = [(1, 1.0), (1, 3.0), (2, 0.0), (2, 1.0)]
    lines = [{"input": str(at), "output": "a", "score": 9.0, "acc": acc, "step": 1} for at, acc in rows]
    (tmp_path / "1.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (given,) = Reader().read([tmp_path])
    (found,) = compare(given, read_choices(["gdpo:reward_keys=[acc]"])).advantages.values()
    assert found[:, 0].tolist() == pytest.approx([-math.sqrt(3) / 2, math.sqrt(3) / 2] * 2, rel=1e-5)
