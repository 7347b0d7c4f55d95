"""Rollouts as JSON lines: what every key means, and what is said of lines that cannot be read."""

import json
import math

import pytest
import torch

from rl_estimators.compare import Problems, Reader, limits, schema
from rl_estimators.compare.steps import Steps
from rl_estimators.compare.weights import Weights
from rl_estimators.errors import InputError
from rl_estimators.fields import FIELDS


@pytest.fixture
def read(tmp_path):
    """Write lines, or objects as lines, and read them."""

    def run(*lines, name="rollouts.jsonl", **options):
        path = tmp_path / name
        words = (line if isinstance(line, (str, bytes)) else json.dumps(line) for line in lines)
        path.write_bytes(
            b"\n".join(word.encode() if isinstance(word, str) else word for word in words) + b"\n"
        )
        return list(Reader(**options).read([path]))

    return run


def rewards(rollouts):
    return rollouts.inputs["token_level_rewards"].tolist()


class TestSchema:
    def test_text(self, read):
        """The reward stands on the last word."""
        (found,) = read(
            {"prompt": "p", "response": "one two", "reward": 1},
            {"prompt": "p", "response": "one, two!", "reward": 0.5},
            {"prompt": "q", "response": "", "reward": True},
        )
        assert found.prompts == ["p", "p", "q"]
        assert [list(own) for own in found.pieces] == [["one", " two"], ["one", ",", " two", "!"], [""]]
        assert rewards(found) == [[0, 1, 0, 0], [0, 0, 0, 0.5], [1, 0, 0, 0]]
        assert found.inputs["response_mask"].sum(-1).tolist() == [2, 4, 1]
        assert list(found.inputs["index"]) == ["p", "p", "q"]
        assert (found.exact, found.step) == (False, None)

    def test_tokens(self, read):
        """The reward stands on the last token of the policy's, not on the tool's."""
        (found,) = read(
            {"uid": 7, "response": ["a", "b", "c"], "mask": [1, 1, 0], "reward": 2, "values": [0.25, 0.5, 0]},
            {"uid": 7, "response": ["a"], "token_level_rewards": [-1], "values": [1]},
        )
        assert rewards(found) == [[0, 2, 0], [-1, 0, 0]]
        assert found.inputs["response_mask"].tolist() == [[True, True, False], [True, False, False]]
        assert found.inputs["values"].tolist() == [[0.25, 0.5, 0], [1, 0, 0]]
        assert list(found.inputs["index"]) == [7, 7]
        assert found.prompts == [None, None]
        assert found.exact

    def test_messages(self, read):
        """What a tool said is not the policy's."""
        call = {"type": "function", "function": {"name": "add"}}
        response = [
            {"role": "assistant", "content": "let me see", "tool_calls": [call]},
            {"role": "tool", "content": "4 5"},
            {"role": "assistant", "content": [{"type": "text", "text": "nine"}]},
        ]
        prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "4 + 5?"}]
        (found,) = read({"prompt": prompt, "response": response, "reward": 1})
        assert found.prompts == ["system: Be brief.\nuser: 4 + 5?"]
        assert "".join(found.pieces[0]) == f"let me see\n{json.dumps(call)}4 5nine"
        mask = found.inputs["response_mask"][0].tolist()
        own = [piece for piece, written in zip(found.pieces[0], mask, strict=True) if not written]
        assert own == ["4", " 5"]
        assert rewards(found)[0][-1] == 1

    def test_what_belongs_to_the_whole_response(self, read):
        (found,) = read(
            {
                "response": ["a"],
                "reward": 1,
                "truncated": True,
                "bootstrap_value": 2.5,
                "reward_baseline": 0.5,
            },
            {"response": ["b"], "reward": 1, "truncated": 0, "bootstrap_values": 0, "reward_baselines": None},
        )
        assert found.inputs["truncated"].tolist() == [True, False]
        assert found.inputs["bootstrap_values"].tolist() == [2.5, 0]
        first, second = found.inputs["reward_baselines"].tolist()
        assert first == 0.5
        assert math.isnan(second)

    def test_several_rewards(self, read):
        """1 + 2; NaN does not apply, so 4; nothing applies."""
        lines = (
            {"response": "a", "reward_components": {"right": 1, "short": 2}},
            {"response": "a", "reward_components": {"right": None, "short": 4}},
            {"response": "a", "reward_components": {"right": None, "short": None}},
        )
        (found,) = read(*lines)
        assert rewards(found)[:2] == [[3], [4]]
        assert math.isnan(rewards(found)[2][0])
        assert found.components == ["right", "short"]
        assert found.inputs["reward_components"][0].tolist() == [1, 2]
        assert "reward = right + short" in found.notes
        (found,) = read(*lines, weights=Weights("short=0.5,right=3"))
        assert rewards(found)[:2] == [[4], [2]]
        (found,) = read(*lines, weights=Weights("3,0.5"))
        assert rewards(found)[:2] == [[4], [2]]

    def test_a_list_of_rewards_beside_the_reward(self, read):
        (found,) = read({"response": "a", "reward": 9, "reward_components": [1, 2]})
        assert rewards(found) == [[9]]
        assert found.inputs["reward_components"].tolist() == [[1, 2]]
        (found,) = read({"response": "a", "reward": 9, "reward_components": [1, 2]}, weights=Weights("1,10"))
        assert rewards(found) == [[21]]

    def test_steps_are_batches_in_their_order(self, read):
        lines = [{"response": "a", "reward": step, "step": step} for step in (10, 2, 10)]
        found = read(*lines, {"response": "a", "reward": 0})
        assert [one.step for one in found] == [None, 2, 10]
        assert [len(one.prompts) for one in found] == [1, 1, 2]
        assert [one.step for one in read(*lines, steps=Steps("3-"))] == [10]

    def test_every_input_of_the_vocabulary_has_a_key(self):
        read = {
            name for name, field in FIELDS.items() if field.dims in (("B", "T"), ("B",)) and name != "index"
        }
        assert all(schema.known(name) for name in read)

    def test_lists_without_text(self, read):
        (found,) = read({"token_level_rewards": [0, 1], "uid": "x"})
        assert found.pieces[0] == [schema.PLACEHOLDER] * 2

    def test_a_response_without_a_token_of_the_policys(self, read):
        (found,) = read({"response": [], "reward": 1}, {"response": ["tool"], "mask": [0], "reward": 1})
        assert rewards(found) == [[0], [0]]
        assert "2 responses hold no token of the policy's: they count for nothing" in found.notes
        (found,) = read({"response": [], "reward": 1})
        assert "1 response holds no token of the policy's: it counts for nothing" in found.notes

    def test_inputs_that_only_some_have_are_left_out_and_named(self, read):
        (found,) = read({"response": ["a"], "reward": 1, "values": [1]}, {"response": ["a"], "reward": 1})
        assert "values" not in found.inputs
        assert "values is left out: 1 of 2 responses lack it" in found.notes

    def test_what_is_not_read_is_named(self, read):
        (found,) = read({"response": "a", "reward": 1, "ground_truth": "b"})
        assert "not read: ground_truth" in found.notes

    def test_neither_prompt_nor_uid(self, read):
        (found,) = read({"response": "a", "reward": 1}, {"response": "b", "reward": 1})
        assert len({*found.inputs["index"]}) == 2
        assert "2 responses without prompt and uid are groups of their own" in found.notes
        (found,) = read({"response": "a", "reward": 1})
        assert "1 response without prompt and uid is a group of its own" in found.notes

    def test_nan_and_infinite_rewards_reach_the_estimator_as_such(self, read):
        (found,) = read(
            *(f'{{"response": "a", "reward": {word}}}' for word in ("NaN", "-Infinity", "1e999", "null"))
        )
        assert [str(row[0]) for row in rewards(found)] == ["nan", "-inf", "inf", "nan"]

    def test_beyond_fp32_is_infinite_as_in_training(self, read):
        (found,) = read(
            {"response": ["a"], "token_level_rewards": [1e300]}, {"response": ["a"], "reward": -1e300}
        )
        assert rewards(found) == [[math.inf], [-math.inf]]
        assert found.inputs["token_level_rewards"].dtype == torch.float32


MALFORMED = {
    "{": "it is not JSON",
    '{"response": "a"}': "it has none of reward, token_level_rewards, reward_components",
    '{"response": "a", "rewards": 1}': "Did you mean 'reward'?",
    '{"response": "a", "reward": "1"}': 'reward is "1", expected a number',
    '{"response": "a", "reward": [1]}': "reward is a list of 1, expected a number",
    '{"response": "a", "reward": 1%s}' % ("0" * 400): "reward is a whole number too large for a float",
    '{"response": "a", "reward": 1%s}' % ("0" * 5000): "it holds a whole number of thousands of digits",
    '{"response": "a", "reward": 1, "token_level_rewards": [1]}': "it has both reward and token_level_rewards; keep one",
    '{"response": ["a"], "reward": 1, "mask": [1], "response_mask": [1]}': "it has both mask and response_mask; keep one",
    '{"response": ["a"], "reward": 1, "mask": [2]}': "mask holds 2, expected 0 and 1",
    '{"response": ["a"], "reward": 1, "mask": [1, 1]}': "response_mask has 2 numbers, but the response 1 tokens",
    '{"response": "a b", "reward": 1, "values": [1]}': "values has 1 numbers, but the response 2 tokens as split here; "
    "give response as a list of its tokens",
    '{"response": ["a"], "reward": 1, "values": 3}': "values is 3, expected a list of numbers, one for each token",
    '{"response": ["a"], "reward": 1, "values": ["x"]}': 'values[0] is "x", expected a number',
    '{"response": 3, "reward": 1}': "response is 3, expected text or a list of messages",
    '{"response": [{"content": "a"}], "reward": 1}': "response holds a message without a role",
    '{"response": [{"role": "user", "content": 1}], "reward": 1}': "response holds a message whose content is 1, expected text",
    '{"prompt": [], "response": "a", "reward": 1}': "prompt is an empty list, expected text or messages",
    '{"reward": 1}': "it has neither a response nor a list that gives its length",
    '{"response": "a", "reward": 1, "uid": 1.5}': "uid is 1.5, expected text or a whole number",
    '{"response": "a", "reward": 1, "step": "3"}': 'step is "3", expected a whole number',
    '{"response": "a", "reward": 1, "step": 1e300}': "step is 1e+300, expected a whole number",
    '{"response": "a", "reward": 1, "truncated": 2}': "truncated is 2, expected true or false",
    '{"response": "a", "reward_components": {}}': "reward_components is neither an object nor a list of numbers",
    "[1]": "it is a JSON list, expected an object; a whole file of it must be rewritten, one object a line",
    "3": "it is a JSON number, expected an object",
    "[" * 100_000: "its lists and objects are nested too deep",
    b"\xff\xfe": "it is not UTF-8 (byte 0)",
    b"\x00\x01\x02": "it is not JSON",
}


class TestMalformed:
    @pytest.mark.parametrize("line", MALFORMED, ids=lambda line: str(line)[:40])
    def test_skipped_with_its_number_and_the_reason(self, read, line):
        problems = Problems()
        good = {"response": "a", "reward": 1}
        (found,) = read(good, "", line, good, problems=problems)
        assert len(found.prompts) == 2
        assert problems.count == 1
        assert "rollouts.jsonl:3: " in problems.reasons[0]
        assert MALFORMED[line] in problems.reasons[0]

    @pytest.mark.parametrize("line", ["{", '{"response": ["a"], "reward": 1, "mask": [1, 1]}'])
    def test_refused_if_strict(self, read, line):
        with pytest.raises(InputError, match=r"rollouts.jsonl:2: .*without --strict it is skipped"):
            read({"response": "a", "reward": 1}, line, problems=Problems(strict=True))

    def test_a_file_that_is_still_being_written(self, tmp_path):
        path, problems = tmp_path / "a.jsonl", Problems()
        path.write_text('{"response": "a", "reward": 1}\n{"response": "a", "rew')
        list(Reader(problems=problems).read([path]))
        assert "the file ends within it: is it still being written?" in problems.reasons[0]

    def test_lines_that_are_too_long(self, read, monkeypatch):
        monkeypatch.setattr("rl_estimators.compare.content.MOST_LINE", 100)
        problems = Problems()
        good = {"response": "a", "reward": 1}
        (found,) = read(good, {"response": "a" * 101, "reward": 1}, good, problems=problems)
        assert len(found.prompts) == 2
        assert problems.reasons[0].endswith("rollouts.jsonl:2: it is longer than 100 bytes")

    def test_the_last_line_may_lack_its_end_and_the_first_has_a_mark(self, tmp_path):
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'\xef\xbb\xbf{"response": "a", "reward": 1}\r\n{"response": "b", "reward": 1}')
        (found,) = Reader().read([path])
        assert len(found.prompts) == 2

    def test_a_line_separator_within_a_text_is_no_end_of_line(self, read):
        (found,) = read(json.dumps({"response": "a\u2028b", "reward": 1}, ensure_ascii=False))
        assert "".join(found.pieces[0]) == "a\u2028b"

    def test_too_many_tokens(self, read, monkeypatch):
        monkeypatch.setattr("rl_estimators.compare.batching.MOST_TOKENS", 2)
        problems = Problems()
        read({"response": "a", "reward": 1}, {"response": "a b c", "reward": 1}, problems=problems)
        assert problems.reasons[0].endswith(":2: its response has 3 tokens, more than 2")

    def test_too_many_responses(self, read, monkeypatch):
        monkeypatch.setattr(limits, "MOST_RESPONSES", 2)
        with pytest.raises(
            InputError, match="more than 2 responses; choose some with --steps, or give fewer files"
        ):
            read(*[{"response": "a", "reward": 1}] * 3)

    def test_too_much_text(self, read, monkeypatch):
        monkeypatch.setattr(limits, "MOST_CHARACTERS", 10)
        with pytest.raises(
            InputError, match="more than 10 characters of text; give fewer files, or split them"
        ):
            read({"response": "a" * 11, "reward": 1})

    def test_a_batch_that_is_too_large(self, read, monkeypatch):
        monkeypatch.setattr(limits, "MOST_CELLS", 5)
        with pytest.raises(
            InputError, match="a batch of 2 responses of up to 3 tokens is more than the 5 numbers"
        ):
            read({"response": "a", "reward": 1}, {"response": "a b c", "reward": 1})


class TestReasons:
    def test_the_first_are_listed_and_all_are_counted(self):
        problems = Problems()
        for number in range(25):
            problems.skip(f"f:{number}", "why")
        lines = problems.lines()
        assert lines[0] == "skipped f:0: why"
        assert lines[-2:] == ["... and 5 more", "25 skipped in all; --strict refuses them"]


class TestSteps:
    @pytest.mark.parametrize(
        ("words", "chosen"),
        [
            ("3", [3]),
            ("1,5", [1, 5]),
            ("2-4", [2, 3, 4]),
            ("8-", [8, 9]),
            ("-1", [0, 1]),
            (None, [*range(10)]),
        ],
    )
    def test_chosen(self, words, chosen):
        steps = Steps(words)
        assert [step for step in range(10) if step in steps] == chosen
        assert (None in steps) == (words is None)

    @pytest.mark.parametrize("words", ["", "a", "1-2-3", "-", "1,,2"])
    def test_what_is_no_step(self, words):
        with pytest.raises(InputError, match="expected steps like 1,5,10-20"):
            Steps(words)


class TestWeights:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("a=1,2", "expected all weights with a name, or none"),
            ("a=1,a=2", "names a reward twice"),
            ("a=x", "has 'x', expected a finite number"),
            ("nan", "has 'nan', expected a finite number"),
        ],
    )
    def test_what_is_no_weight(self, words, message):
        with pytest.raises(InputError, match=message):
            Weights(words)

    def test_they_must_fit(self):
        with pytest.raises(
            InputError, match=r"there is no reward 'righ'\. Did you mean 'right'\? There are: right"
        ):
            Weights("righ=1").of(["right"])
        with pytest.raises(InputError, match="has 1 numbers, but there are 2 rewards: a, b"):
            Weights("1").of(["a", "b"])

    def test_nothing_to_weigh(self, read):
        with pytest.raises(
            InputError, match="--reward-weights is given, but there are no several rewards to weigh"
        ):
            read({"response": "a", "reward": 1}, weights=Weights("1"))
