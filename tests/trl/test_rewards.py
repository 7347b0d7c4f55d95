"""From TRL's rewards per completion and function to rewards per token, and what has none is left out."""

import math

import pytest

pytestmark = pytest.mark.trl
pytest.importorskip("trl")

import torch  # noqa: E402
import toy  # noqa: E402

from rl_estimators.errors import InputError  # noqa: E402
from rl_estimators.trl import EstimatorConfig, EstimatorTrainer, advantages  # noqa: E402
from rl_estimators.trl.rewards import Scored, call_token_rewards, scores, token_level  # noqa: E402

NAN = math.nan


def rows(*numbers):
    return [torch.tensor(row) for row in numbers]


def test_a_score_is_the_weighted_sum_of_the_rewards_there_are():
    """.5 * 2 + 3 * 1 = 4; only the second function: 3 * -1; only the first: .5 * 4; none."""
    rewards = torch.tensor([[2.0, 1.0], [NAN, -1.0], [4.0, NAN], [NAN, NAN]])
    found = scores(rewards, torch.tensor([0.5, 3.0]))
    torch.testing.assert_close(found, torch.tensor([4.0, -3.0, 2.0, NAN]), rtol=0, atol=0, equal_nan=True)
    assert rewards[1, 0].isnan()  # unchanged


def test_the_score_is_on_the_last_token_that_the_policy_wrote():
    """In order: all of it, padding behind, tool output behind, tool output inside, a single token, none."""
    mask = torch.tensor(
        [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]
    ).bool()
    found = token_level(torch.arange(1.0, 7.0), mask)
    expected = [[0, 0, 0, 1], [0, 2, 0, 0], [3, 0, 0, 0], [0, 0, 0, 4], [5, 0, 0, 0], [0, 0, 0, 0]]
    assert found.tolist() == expected


def test_a_score_that_is_not_there_is_nan_on_that_token_alone():
    found = token_level(torch.tensor([NAN, 1.0]), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool())
    assert found[0].isnan().tolist() == [False, True, False]
    assert found[1].tolist() == [0, 0, 1]


def test_token_rewards_add_up_with_their_weights():
    """Two functions, weights 2 and -1, a score of 10 on the last token.

    Row 0: 2 * (1, 2, 3) - (4, 5, 6) = (-2, -1, 0), and 10 at the end. Row 1 has two tokens: 2 * (1, 1) - (0, 3) =
    (2, -1), and 10 on its second.
    """
    found = token_level(
        torch.tensor([10.0, 10.0]),
        torch.tensor([[1, 1, 1], [1, 1, 0]]).bool(),
        [rows([1.0, 2.0, 3.0], [1.0, 1.0]), rows([4.0, 5.0, 6.0], [0.0, 3.0])],
        [2.0, -1.0],
    )
    assert found.tolist() == [[-2, -1, 10], [2, 9, 0]]


def test_weights_are_one_by_default():
    mask = torch.ones(1, 2).bool()
    found = token_level(torch.zeros(1), mask, [rows([1.0, 2.0]), rows([10.0, 20.0])])
    assert found.tolist() == [[11, 22]]


def test_rewards_of_tool_output_go_to_the_token_before():
    """Tokens 1 and 2 are tool output: their 20 + 30 join token 0's 1. Where it comes first, the token after it.

    A reward that is missing on tool output is nobody's; one that is missing on a token of the policy stays missing.
    """
    mask = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1]]).bool()
    given = rows([1.0, 20.0, 30.0, 4.0], [7.0, 1.0, 1.0, 1.0], [1.0, NAN, 1.0, 1.0], [1.0, NAN, 5.0, 1.0])
    found = token_level(torch.full((4,), 100.0), mask, [given])
    assert found[0, [0, 3]].tolist() == [51, 104]
    assert found[1, 1:].tolist() == [8, 1, 101]
    assert found[2, [0, 2, 3]].tolist() == [1, 1, 101]
    assert found[3, [0, 3]].tolist() == [1, 101]
    assert math.isnan(found[3, 1])


def test_a_completion_without_valid_tokens_has_no_rewards():
    found = token_level(torch.tensor([3.0]), torch.zeros(1, 2).bool(), [rows([1.0, 2.0])])
    assert found.tolist() == [[0, 0]]


def test_a_token_reward_function_is_asked_as_a_reward_function_is():
    def function(prompts, completions, completion_ids, answer, **shared):
        assert (prompts, completions, answer) == (["p", "q"], ["a", "b"], ["x", "y"])
        assert shared == {"trainer_state": "state"}
        return [[0.5, None][: len(ids)] for ids in completion_ids]

    inputs = [{"prompt": "p", "answer": "x"}, {"prompt": "q", "answer": "y"}]
    found = call_token_rewards(function, ["p", "q"], ["a", "b"], [[1, 2], [3]], inputs, trainer_state="state")
    assert found[0][0] == 0.5
    assert found[0][1].isnan()
    assert found[1].tolist() == [0.5]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([[1.0]], r"'judge' returned 1 lists for 2 completions"),
        (
            [[1.0], [1.0, 2.0]],
            r"'judge' returned 1 numbers for completion 0, which has 2 tokens; return one per",
        ),
        (
            [None, [1.0]],
            r"'judge' returned None for completion 0, expected a list of 2 numbers, .* 0 where it has",
        ),
        ([0.5, 0.5], r"'judge' returned 0.5 for completion 0, expected a list of 2 numbers"),
        (None, r"'judge' returned a NoneType, expected a list for each completion"),
    ],
)
def test_a_token_reward_function_that_returns_something_else(answer, message):
    def judge(**_):
        return answer

    with pytest.raises(InputError, match=message):
        call_token_rewards(judge, ["p", "p"], ["a", "b"], [[1, 2], [3]], [{"prompt": "p"}] * 2)


def run(tiny, folder, reward, **more):
    fields = more.pop("fields", {})
    config = EstimatorConfig(**toy.settings(folder, max_steps=1, **fields))
    trainer = toy.make(EstimatorTrainer, config, tiny, reward_funcs=reward, **more)
    trainer.train()
    logged = next(row for row in trainer.state.log_history if "reward" in row)
    return list(trainer._logs["advantages"]), logged, trainer


def test_completions_without_a_reward_are_left_out(tiny, tmp_path):
    """REINFORCE's advantage is the score: 1, 2, ... but for the two that are None and NaN, which add nothing."""

    def numbered(prompts, **_):
        given = [float(row + 1) for row in range(len(prompts))]
        given[2], given[5] = None, NAN
        return given

    advantages, logged, _ = run(tiny, tmp_path, numbered, fields={"adv_estimator": "reinforce"})
    assert advantages == [1, 2, 0, 4, 5, 0, 7, 8]
    assert logged["rl_estimators/excluded_responses"] == 2
    assert logged["grad_norm"] > 0


def test_groups_are_compared_without_those_left_out(tiny, tmp_path):
    """Groups of 4 without division: (1, 2, 3) around 2 with one left out, and (4, 4, 8, 8) around 6."""

    def given(**_):
        return [1.0, 2.0, None, 3.0, 4.0, 4.0, 8.0, 8.0]

    advantages, logged, _ = run(tiny, tmp_path, given, fields={"scale_rewards": "none"})
    assert advantages == [-1, 0, 0, 1, -2, -2, 2, 2]
    assert logged["rl_estimators/excluded_responses"] == 1


def test_no_rewards_at_all(tiny, tmp_path):
    advantages, logged, _ = run(tiny, tmp_path, lambda prompts, **_: [None] * len(prompts))
    assert advantages == [0] * 8
    assert logged["rl_estimators/excluded_responses"] == 8
    assert logged["grad_norm"] == 0


def test_token_rewards_in_a_run(tiny, tmp_path):
    """Advantages of REINFORCE are the rewards still to come, 2 for each token left and -1 for each but the last one.

    So a completion of n tokens has on average 2 * (n + 1) / 2 - (n - 1) / 2 = (n + 3) / 2; the completion whose
    second function knows nothing of a token is left out.
    """
    lengths, told = [], []

    def each(completion_ids, trainer_state, log_metric, **_):
        told.append(trainer_state.global_step)
        log_metric("judged", len(completion_ids))
        return [[2.0] * len(ids) for ids in completion_ids]

    def but_the_last(completion_ids, **_):
        lengths.extend(map(len, completion_ids))
        given = [[0.5] * (len(ids) - 1) + [0.0] for ids in completion_ids]
        given[3][0] = None
        return given

    advantages, logged, _ = run(
        tiny,
        tmp_path,
        lambda prompts, **_: [0.0] * len(prompts),
        fields={"adv_estimator": "reinforce", "token_reward_weights": [1.0, -2.0]},
        token_reward_funcs=[each, but_the_last],
    )
    expected = [(n + 3) / 2 for n in lengths]
    expected[3] = 0
    assert len(set(expected)) > 2
    assert advantages == pytest.approx(expected)
    assert logged["rl_estimators/excluded_responses"] == 1
    assert logged["judged"] == 8
    assert told == [0]


def test_tool_output_in_a_batch(tiny, tmp_path):
    """Two turns with tool output between them, as TRL lays it out: (mask) 1 1 0 0 1.

    Rewards of tokens 1, 2, 4 and 8 and 16, the tool's carried to the token before: 1, 14, -, -, 16 and the score of 32.
    REINFORCE: 63, 62, 0, 0, 48.
    """
    config = EstimatorConfig(**toy.settings(tmp_path, adv_estimator="reinforce"))
    trainer = toy.make(EstimatorTrainer, config, tiny, token_reward_funcs=lambda **_: [])
    trainer.model.train()
    batch = {
        "completion_mask": torch.tensor([[1, 1, 1, 1, 1, 0]]),
        "tool_mask": torch.tensor([[1, 1, 0, 0, 1, 1]]),  # padded with 1
    }
    scored = Scored(torch.tensor([[32.0]]), torch.tensor([False]), [rows([1.0, 2.0, 4.0, 8.0, 16.0])])
    found = advantages.add(trainer, batch, scored)["advantages"]
    assert found.tolist() == [[63, 62, 0, 0, 48, 0]]


def test_an_async_token_reward_function_is_refused(tiny, tmp_path):
    async def judge(**_):
        return []

    class Judge:
        async def __call__(self, **_):
            return []

    for function, name in ((judge, "judge"), (Judge(), "Judge")):
        with pytest.raises(
            InputError, match=f"token reward function '{name}' is async, .*reward_funcs alone"
        ):
            run(tiny, tmp_path, toy.reward, token_reward_funcs=[function])


def test_an_async_reward_function_counts(tiny, tmp_path):
    async def judge(prompts, **_):
        return [1.0] * len(prompts)

    advantages, _, _ = run(tiny, tmp_path, judge, fields={"adv_estimator": "reinforce"})
    assert advantages == [1] * 8


def test_reward_weights_reach_gdpo(tiny, tmp_path):
    """The second reward has weight 0, so that it might as well not be there."""

    def noise(prompts, **_):
        return [float(7 * row % 5) for row in range(len(prompts))]

    def given(prompts, **_):
        return [float(row % 3) for row in range(len(prompts))]

    def column(funcs, weights):
        fields = {"adv_estimator": "gdpo", "reward_weights": weights}
        return run(tiny, tmp_path, funcs, fields=fields)[0]

    assert column([given, noise], [1.0, 0.0]) == column([given], [1.0])
    assert column([given, noise], [1.0, 1.0]) != column([given], [1.0])
