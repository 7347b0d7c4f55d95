"""What is printed: text that cannot harm a terminal, tables within its width, and what they say."""

import unicodedata
from dataclasses import replace

import pytest
from compare.batches import rollouts
from hypothesis import given
from hypothesis import strategies as st

from rl_estimators.compare import compare, read_choices
from rl_estimators.compare.report import report
from rl_estimators.compare.summary import summarise
from rl_estimators.compare.words import Words
from rl_estimators.files.plain import clip, clip_middle, escaped, pad, width

HOSTILE = "\x1b[2J\x1b]0;title\x07\u202ereversed\u2028line\x00\ud800\u200b end"


class TestPlain:
    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("plain", "plain"),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\x1b[31m", "\\x1b[31m"),
            ("\u202e\u2028\ud800\u200b", "\\u202e\\u2028\\ud800\\u200b"),
            ("\U000e0041", "\\U000e0041"),
            ("caf\u00e9 \u4e2d", "caf\u00e9 \u4e2d"),
        ],
    )
    def test_escaped(self, text, shown):
        assert escaped(text) == shown

    def test_width(self):
        """East Asian signs take two columns, a mark on a sign none."""
        assert width("ab\u4e2d\u6587e\u0301") == 7
        assert pad("\u4e2d", 4) == "\u4e2d  "
        assert pad("\u4e2d", 4, right=True) == "  \u4e2d"

    @given(st.text(), st.integers(4, 60))
    def test_nothing_is_wider_or_harmful(self, text, columns):
        for shown in (clip(text, columns), clip_middle(text, columns)):
            assert width(shown) <= columns
            assert not any(unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") for sign in shown)

    def test_what_is_cut_off(self):
        assert clip("abcdefghij", 8) == "abcde..."
        assert clip("abcdefgh", 8) == "abcdefgh"
        assert clip_middle("abcdefghijklmnop", 11) == "abcd...mnop"
        assert clip_middle("abcdefghijk", 11) == "abcdefghijk"


class TestWords:
    @given(st.text())
    def test_joined_they_are_the_text(self, text):
        pieces = Words().split(text)
        assert "".join(pieces) == text
        assert Words().counts([text, ""]) == [len(pieces), 0]
        assert all(pieces)

    def test_signs_of_scripts_without_spaces(self):
        assert Words().split("\u4e2d\u6587 is two") == ["\u4e2d", "\u6587", " is", " two"]


def printed(batches, names="grpo,rloo,reinforce_pp", columns=100, shown=5, each=False):
    choices = read_choices([names])
    summaries = [summarise(compare(batch, choices), shown) for batch in batches]
    return list(report(summaries, columns, shown, each))


class TestReport:
    @pytest.mark.parametrize("columns", [40, 60, 80, 100, 200])
    def test_no_line_is_wider_than_the_terminal(self, columns):
        wide = replace(rollouts(step=3), notes=["\u4e2d" * 500], prompts=["\u6587" * 300] * 12)
        names = "grpo,rloo,reinforce_pp,opo,maxrl,gpg,grpo_passk,grpo:norm_by_std=false,epsilon=1e-3,gae"
        lines = printed([rollouts(), rollouts(step=2), wide], names, columns, each=True)
        assert max(map(width, lines)) <= columns

    def test_the_table_of_the_estimators(self):
        """The figures are those of test_comparing.py: 12 of 25 tokens at 0, 7 praised, 2 of 5 prompts carry."""
        table = [line.split() for line in printed([rollouts()])]
        assert ["1", "grpo", "50%", "48%", "28%", "0.627", "40%", "66%"] in table

    def test_an_all_wrong_prompt_teaches_grpo_nothing(self):
        text = " ".join(" ".join(printed([rollouts()])).split())
        assert "2 of 5 prompts have responses that all score the same (1 all right, 1 all wrong)." in text
        assert "Nothing is learnt from any of them, for all their advantages are 0, under grpo, rloo." in text
        assert "Not so under reinforce_pp: the prompt's own responses are not all that counts there." in text
        assert "step 1: prompt wrong 3 0 all wrong" in text
        assert "With a single response, and so none to compare it with: 1." in text

    def test_no_prompt_is_without_a_difference(self):
        text = " ".join(printed([rollouts(scores=[0.0, 1], index=["a", "a"], lengths=[1, 1])]))
        assert "No prompt has responses that all score the same." in text

    def test_what_did_not_run_is_named_once_for_each_reason(self):
        text = " ".join(" ".join(printed([rollouts()], "grpo,gae,td")).split())
        assert "not run: gae, td: the rollouts lack values, the critic's value before each token" in text

    def test_one_estimator_is_compared_with_none(self):
        assert not any("agreement" in line or "contested" in line for line in printed([rollouts()], "grpo"))

    def test_failed_scores_are_told(self):
        lines = printed([rollouts(scores=[float("nan"), *[1.0] * 11])])
        assert "1 reward is NaN or infinite, which our estimators leave out" in " ".join(lines[:3])
        assert any("left out" in line for line in lines)
        lines = printed([rollouts(scores=[float("nan"), float("inf"), *[1.0] * 10])])
        assert "2 rewards are NaN or infinite, which our estimators leave out" in " ".join(lines[:3])

    def test_hostile_text_is_written_out(self):
        given = rollouts(scores=[0.0, 1], index=["a", "a"], lengths=[1, 1])
        given = replace(given, source=HOSTILE, prompts=[HOSTILE] * 2, pieces=[[HOSTILE]] * 2, notes=[HOSTILE])
        text = "\n".join(printed([given], "rloo,reinforce"))
        assert all(
            sign == "\n" or unicodedata.category(sign) not in ("Cc", "Cf", "Cs", "Zl") for sign in text
        )
        assert "\\x1b[2J" in text
        text.encode()

    def test_a_table_for_each_step(self):
        lines = printed([rollouts(), rollouts(step=2)], each=True)
        assert [line for line in lines if line.startswith("a file")] == [
            "a file: ", "a file, step 1", "a file, step 2",
        ]  # fmt: skip
        assert any(line == "What each makes of the responses, over 2 batches" for line in lines)
