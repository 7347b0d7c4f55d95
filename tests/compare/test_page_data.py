"""What the page embeds: numbers and texts as they are packed, what is chosen from large batches, what is refused."""

import base64
import hashlib
import json
import math
import re
import struct

import numpy as np
import pytest
import torch
from compare import browser
from compare.page_samples import compared, rollouts

from rl_estimators.compare.model import Comparison, Rollouts
from rl_estimators.compare.page import document, payload, render
from rl_estimators.compare.page.choose import contested, kept_responses, kept_steps
from rl_estimators.compare.page.digest import digest
from rl_estimators.compare.page.encode import number, row, text_of_json
from rl_estimators.errors import InputError

NAN, INF = math.nan, math.inf
EACH_KIND = [
    "mixed",
    "mixed",
    "right",
    "right",
    "wrong",
    "wrong",
    "same",
    "same",
    "alone",
    "failed",
    "failed",
]
SCORES = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.5, 0.5, 1.0, NAN, 1.0]


def made(scores, index, advantages, width=2, **more):
    """A comparison with the score on each response's last token; ``advantages``: one number a response."""
    size = len(scores)
    rewards = torch.zeros(size, width)
    rewards[:, -1] = torch.tensor(scores)
    inputs = {
        "token_level_rewards": rewards,
        "response_mask": torch.ones(size, width),
        "index": index,
        **more,
    }
    texts = [[f"{i}.{t}" for t in range(width)] for i in range(size)]
    batch = Rollouts("made.jsonl", 7, [f"prompt {name}" for name in index], texts, True, inputs)
    spread = {name: torch.tensor(a)[:, None].expand(size, width).clone() for name, a in advantages.items()}
    return Comparison(batch, spread)


def data_of(page):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.S)[1])


def step_of(comparison):
    return data_of(render([comparison], "t"))["steps"][0]


def unpacked(packed):
    """What encode.row promises, read by hand: runs, or the upper bytes of little-endian float32."""
    if isinstance(packed, list):
        pairs = zip(packed[::2], packed[1::2], strict=True)
        return [float(value) for length, value in pairs for _ in range(length)]
    raw = base64.b64decode(packed)
    return [struct.unpack("<f", b"\0" + raw[i : i + 3])[0] for i in range(0, len(raw), 3)]


# ---- numbers


def test_equal_neighbours_are_runs():
    assert row(np.array([0, 0, 0, 0, 0, 0, 0, 1.5])) == [7, 0, 1, 1.5]
    assert row(np.array([NAN] * 5 + [-INF] * 3)) == [5, "NaN", 3, "-Infinity"]
    assert row(np.array([])) == []


def test_packed_numbers_keep_their_sign_and_five_digits():
    rng = np.random.default_rng(0)
    numbers = (rng.standard_normal(500) * 10.0 ** rng.integers(-30, 30, 500)).astype(np.float32)
    numbers[::50] = 0
    packed = row(numbers)
    assert isinstance(packed, str)
    assert len(packed) == 4 * 500
    found = np.array(unpacked(packed))
    assert np.array_equal(found == 0, numbers == 0)
    nonzero = numbers != 0
    assert np.max(np.abs(found[nonzero] / numbers[nonzero].astype(float) - 1)) <= 2**-16
    assert np.array_equal(np.sign(found), np.sign(numbers))


def test_packed_numbers_that_are_not_finite_stay_what_they_are():
    odd = np.frombuffer(struct.pack("<I", 0x7FFFFFFF), "<f4")  # a NaN that rounding would turn into -0
    numbers = np.concatenate([[1, 2, 3, 4, INF, 5, -INF, 6, NAN, 7], odd])
    assert isinstance(row(numbers), str)
    np.testing.assert_array_equal(unpacked(row(numbers)), numbers)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (1.0, "1"),
        (1 / 3, "0.333333"),
        (-2e-7, "-2e-07"),
        (NAN, '"NaN"'),
        (INF, '"Infinity"'),
    ],
)
def test_single_numbers(value, expected):
    assert text_of_json(number(value)) == expected


# ---- texts

HOSTILE = '</script><!--<script>&amp; \u2028\u2029\u202e\u2066\x00\x1b[31m\x7f\x85\ufeff\u200b\U000e0041 \ud800 é 漢 🙂 \\u003c " \\'


def test_texts_can_stand_in_a_script_and_come_back_whole():
    text = text_of_json({"k": HOSTILE, HOSTILE: 1})
    assert not re.search(
        "[<>&\u2028\u2029\u202e\u2066\x00-\x1f\x7f-\x9f\ufeff\u200b\ud800-\udfff\U000e0041]", text
    )
    assert "é 漢 🙂" in text
    text.encode("utf-8")
    assert json.loads(text) == {"k": HOSTILE, HOSTILE: 1}


def test_the_page_can_be_written_whatever_the_title():
    page = render([compared(rollouts())], HOSTILE)
    page.encode("utf-8")
    title = re.search("<title>(.*?)</title>", page, re.S)[1]
    assert title.startswith("&lt;/script&gt;&lt;!--&lt;script&gt;&amp;amp; ")
    assert data_of(page)["title"] == HOSTILE


# ---- the document


def test_only_this_script_and_this_style_may_run():
    page = render([compared(rollouts())], "t")
    policy = re.search('http-equiv="Content-Security-Policy" content="(.*?)"', page)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    style = re.search(r"<style>(.*?)</style>", page, re.S)[1]

    def hashed(text):
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    assert rules == {
        "default-src": "'none'",
        "script-src": hashed(script),
        "style-src": hashed(style),
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert page.count("<script") == 2


def test_the_page_refers_to_nothing_outside():
    page = re.sub('id="data">.*?</script>', "", render([compared(rollouts())], "t"), flags=re.S)
    page = page.replace("http://www.w3.org/2000/svg", "")
    calls = r"\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon|innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\("
    assert not re.search(r"https?:|//\w|\bsrc=|@import|url\(|" + calls, page)
    assert set(re.findall(r'href="(.*?)"', page)) == {"#responses"}


def test_every_script_of_the_package_is_in_the_page():
    folder = document.files("rl_estimators.compare.page")
    assert sorted(document.SCRIPTS) == sorted(f.name for f in folder.iterdir() if f.name.endswith(".js"))


# ---- the overview


def test_kinds_of_prompts():
    found = step_of(made(SCORES, EACH_KIND, {"a": [0.0] * len(SCORES)}))
    assert found["kinds"] == {"mixed": 1, "right": 1, "wrong": 1, "same": 1, "single": 2}
    kinds = {prompt["text"].removeprefix("prompt "): prompt["kind"] for prompt in found["prompts"]}
    expected = {"mixed": "mixed", "right": "right", "wrong": "wrong", "same": "same"}
    assert kinds == {**expected, "alone": "single", "failed": "single"}
    assert found["counts"] == {"responses": 11, "prompts": 6, "tokens": 22, "left_out": 1}


def test_numbers_of_an_estimator():
    """Eight tokens: four of 1, two of -3 and two of 0; the prompts' sums of absolute numbers are 4 + 0, 6, and 0."""
    advantages = [1.0, 1.0, -3.0, 0.0]
    (a,) = step_of(made([1, 0, 1, 1], ["p", "p", "q", "r"], {"a": advantages}))["estimators"]
    assert a["zero_tokens"] == a["zero_responses"] == 0.25
    assert a["positive"] == 0.5
    assert a["prompts"] == 2
    assert a["largest"] == 0.6
    assert a["spread"] == pytest.approx(np.std([1, 1, 1, 1, -3, -3, 0, 0]), rel=1e-5)
    assert a["token_scale"] == a["response_scale"] == 3


def test_silence_is_counted_over_prompts_that_are_answered_alike():
    """`quiet` gives 0 to all three prompts answered alike, `loud` to one of them."""
    quiet = [1.0, -1.0, *[0.0] * 9]
    loud = [1.0, -1.0, 1.0, 1.0, -1.0, -1.0, *[0.0] * 5]
    found = step_of(made(SCORES, EACH_KIND, {"quiet": quiet, "loud": loud}))
    assert [each["quiet_zero"] for each in found["estimators"]] == [3, 1]


def test_agreement_is_between_each_two():
    """Orders 1 2 3 4 and 4 3 2 1; of four responses two have opposite signs."""
    found = step_of(made([1, 0, 1, 0], ["p"] * 4, {"a": [-2.0, -1.0, 1.0, 2.0], "b": [4.0, 3.0, 2.0, 1.0]}))
    assert found["rank"] == [[1, -1], [-1, 1]]
    assert found["sign"] == [[0, 0.5], [0.5, 0]]


def test_advantages_that_are_not_finite_are_counted():
    found = step_of(made([1, 0], ["p", "p"], {"theirs": [NAN, 1.0]}))
    assert found["estimators"][0]["odd"] == 2
    assert found["responses"][0]["advantages"] == [[2, "NaN"]]


def test_without_estimators_or_responses_there_still_is_a_page():
    nothing = Rollouts(
        "empty", None, [], [], True,
        {"token_level_rewards": torch.zeros(0, 3), "response_mask": torch.zeros(0, 3), "index": []},
    )  # fmt: skip
    assert step_of(Comparison(nothing, {}))["responses"] == []
    assert step_of(made([1.0], ["p"], {}))["estimators"] == []


# ---- responses


def test_a_response_has_its_tokens_and_all_their_numbers():
    batch = rollouts()
    comparison = compared(batch)
    i = 12  # with a tool's output
    found = step_of(comparison)["responses"][i]
    length = len(batch.pieces[i])
    assert found["pieces"] == batch.pieces[i]
    assert unpacked(found["mask"]) == batch.inputs["response_mask"][i, :length].tolist()
    assert unpacked(found["rewards"]) == [0.0] * (length - 1) + [1.0]
    assert unpacked(found["values"]) == pytest.approx(batch.inputs["values"][i, :length].tolist(), rel=2e-5)
    for packed, advantages in zip(found["advantages"], comparison.advantages.values(), strict=True):
        assert unpacked(packed) == pytest.approx(advantages[i, :length].tolist(), rel=2e-5)
    assert found["greedy"] == 0
    assert found["tokens"] == int(batch.inputs["response_mask"][i].sum())


def test_what_else_is_known_of_a_response():
    components = torch.tensor([[1.0, 0.25], [0.0, 0.5]])
    comparison = made(
        [1, 0], ["p", "p"], {"a": [1.0, -1.0]}, truncated=torch.tensor([0, 1]), reward_components=components
    )
    first, second = step_of(comparison)["responses"]
    assert [first["truncated"], second["truncated"]] == [False, True]
    assert second["components"] == [["reward 1", 0], ["reward 2", 0.5]]
    named = Rollouts(**{**vars(comparison.rollouts), "components": ("right", "form")})
    assert step_of(Comparison(named, comparison.advantages))["responses"][0]["components"] == [
        ["right", 1],
        ["form", 0.25],
    ]


def test_of_a_long_response_both_ends_are_kept(monkeypatch):
    monkeypatch.setattr(payload, "MAX_TOKENS", 9)
    found = step_of(made([1.0, 0.0], ["p", "p"], {"a": [1.0, 2.0]}, width=20))["responses"][0]
    assert found["pieces"] == [f"0.{t}" for t in (0, 1, 2, 3, 4, 5, 17, 18, 19)]
    assert found["cut"] == [6, 11]
    assert unpacked(found["rewards"]) == [0.0] * 8 + [1.0]
    assert found["tokens"] == 20


def test_long_words_and_prompts_are_shortened_and_say_so(monkeypatch):
    monkeypatch.setattr(payload, "MAX_PIECE", 10)
    monkeypatch.setattr(payload, "MAX_PROMPT", 6)
    comparison = made([1.0], ["p"], {"a": [1.0]})
    comparison.rollouts.pieces[0][0] = "abcde" + "-" * 5000 + "vwxyz"
    found = step_of(comparison)
    assert found["responses"][0]["pieces"][0] == "abcde [… 5,000 characters left out …] vwxyz"
    assert found["prompts"][0]["text"] == "pro [… 2 characters left out …] t p"


def test_tokens_are_halved_until_the_page_is_small(monkeypatch):
    rng = np.random.default_rng(0)
    comparison = made([1.0, 0.0] * 4, ["p"] * 8, {"a": [1.0] * 8}, width=900)
    comparison.advantages["a"][:] = torch.from_numpy(rng.standard_normal((8, 900)))
    monkeypatch.setattr(payload, "MAX_BYTES", 40_000)
    page = render([comparison], "t")
    assert (
        data_of(page)["limits"]["tokens"] == 250
    )  # 500 tokens of 8 responses take 4 + 8 characters each, and more
    assert len(page) < 110_000


# ---- what is kept of many


def test_prompts_are_kept_whole_and_those_that_carry_most_come_first():
    """Twelve prompts of four; prompt 5 carries most, prompt 9 is the one that the estimators disagree on."""
    index = [f"p{i // 4}" for i in range(48)]
    scores = [1.0, 0.0, 0.0, 0.0] * 12
    scores[:4] = [0.0] * 4
    a = [0.0] * 4 + [0.1, -0.1, -0.1, -0.1] * 11
    a[20:24] = [9.0, -9.0, -9.0, -9.0]
    b = list(a)
    b[36:40] = [-0.1, 0.1, 0.1, 0.1]
    found = digest(made(scores, index, {"a": a, "b": b}))
    assert kept_responses(found, 48) == list(range(48))
    assert kept_responses(found, 13) == [
        *range(0, 4),
        *range(20, 24),
        *range(36, 40),
    ]  # and an example of "all wrong"
    assert contested(found)[36:41].tolist() == [1, 1, 1, 1, 0]


def test_of_one_large_prompt_the_largest_advantages_are_kept():
    found = digest(made([1.0, 0.0] * 10, ["p"] * 20, {"a": [float(i % 7) for i in range(20)]}))
    assert kept_responses(found, 5) == [5, 6, 12, 13, 19]


def test_what_is_left_out_is_known_to_the_page(monkeypatch):
    monkeypatch.setattr(payload, "MAX_RESPONSES", 4)
    found = step_of(made([1.0, 0.0] * 4, ["p", "p", "q", "q"] * 2, {"a": [1.0, -1.0] * 4}))
    assert len(found["responses"]) == 4
    assert found["counts"]["responses"] == 8


def test_steps_are_evenly_spaced():
    assert kept_steps(25) == list(range(25))
    kept = kept_steps(500)
    assert len(kept) == 25
    assert (kept[0], kept[-1]) == (0, 499)
    assert set(np.diff(kept)) <= {20, 21}


def test_many_steps_share_the_room():
    comparison = compared(rollouts())
    found = data_of(render([comparison] * 30, "t"))
    assert found["limits"]["steps"] == 30
    assert len(found["steps"]) == 25
    assert all(len(step["responses"]) == 8 for step in found["steps"])


def test_the_inputs_stay_as_they_were():
    comparison = compared(rollouts())
    before = {name: a.clone() for name, a in comparison.advantages.items()}
    render([comparison], "t")
    for name, a in comparison.advantages.items():
        assert torch.equal(a, before[name])


# ---- refusals


def test_nothing_to_show_is_refused():
    with pytest.raises(InputError, match="no comparison to show; give render at least one"):
        render([], "t")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompts": ["one"]}, r"made.jsonl: 1 prompts for 2 responses; give one for each"),
        ({"pieces": [["a"]]}, r"made.jsonl: 1 pieces for 2 responses; give one for each"),
        (
            {"pieces": [["a"] * 3, ["b"]]},
            r"a response has 3 pieces and response_mask has 2 positions; give at most one",
        ),
    ],
)
def test_texts_that_do_not_fit_are_refused(change, message):
    comparison = made([1, 0], ["p", "p"], {"a": [1.0, -1.0]})
    wrong = Rollouts(**{**vars(comparison.rollouts), **change})
    with pytest.raises(InputError, match=message):
        render([Comparison(wrong, comparison.advantages)], "t")


def test_advantages_that_do_not_fit_are_refused():
    comparison = made([1, 0], ["p", "p"], {"a": [1.0, -1.0]})
    with pytest.raises(
        InputError, match=r"the advantages of a have shape \(2, 3\), expected \(2, 2\) as response_mask"
    ):
        render([Comparison(comparison.rollouts, {"a": torch.zeros(2, 3)})], "t")


# ---- the browser of the other tests


def test_without_a_browser_the_tests_are_skipped_unless_it_is_required(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv(browser.REQUIRED, raising=False)
    with pytest.raises(pytest.skip.Exception, match="chromium and chromedriver not installed"):
        browser.programs()
    monkeypatch.setenv(browser.REQUIRED, "1")
    with pytest.raises(pytest.fail.Exception, match="not installed, and RL_ESTIMATORS_REQUIRE_CHROMIUM=1"):
        browser.programs()
