"""Rollouts to look at: seven questions, four answers each, with a critic that changes its mind where the answer is decided.

In the texts ``{0.9}`` says what the critic expects from there on, and ``[[...]]`` is a tool's output.
"""
# ruff: noqa: RUF001  the signs of arithmetic are meant

import re

import torch

from rl_estimators import estimate
from rl_estimators.compare.model import Comparison, Rollouts

QUESTIONS = [
    (
        "What is 17 × 24? End with “Answer:” and the number.",
        1.0,
        [
            (
                1,
                "{0.6}17 × 24 is 17 × 20 + 17 × 4.\n{0.7}17 × 20 = 340 and 17 × 4 = 68,{0.9} so it is 408.\nAnswer: 408",
            ),
            (1, "{0.6}Double 17 is 34,{0.6} and 34 × 12 = 408.{0.9}\nAnswer: 408"),
            (0, "{0.6}17 × 24 is 17 × 25 − 17.\n{0.7}17 × 25 = 415,{0.2} so it is 398.{0.1}\nAnswer: 398"),
            (0, "{0.6}20 × 24 = 480. Take away 3 × 24 = 62:{0.2} 418.\n{0.1}Answer: 418"),
        ],
    ),
    (
        "What is 3 + 4? End with “Answer:” and the number.",
        1.0,
        [
            (1, "{0.9}Answer: 7"),
            (1, "{0.9}3 + 4 = 7.\nAnswer: 7"),
            (1, "{0.9}Seven.\nAnswer: 7"),
            (1, "{0.9}Answer: 7"),
        ],
    ),
    (
        "What is the 40th prime number? End with “Answer:” and the number.",
        0.0,
        [
            (0, "{0.2}The primes are 2, 3, 5, 7, 11, 13 and so on.{0.2} The 40th is 163.{0.1}\nAnswer: 163"),
            (0, "{0.2}I count 25 primes below 100,{0.3} then 15 more: 179.{0.1}\nAnswer: 179"),
            (0, "{0.2}Answer: 181"),
            (0, "{0.2}There are 46 primes below 200.{0.3} Six steps back from 199: 167.{0.1}\nAnswer: 167"),
        ],
    ),
    (
        "Use the calculator if you want to. How many seconds are there in 37 days, less one hour?",
        0.0,
        [
            (
                1,
                "{0.4}A day has 86000 seconds:{0.1} no, 24 × 3600 = 86400.{0.6}\n<calc>37 * 86400 - 3600</calc>{0.8}"
                "[[\n<result>3193200</result>\n]]{0.9}The calculator says 3193200.\nAnswer: 3193200",
            ),
            (
                0,
                "{0.4}<calc>37 * 24 * 60</calc>{0.2}[[\n<result>53280</result>\n]]{0.2}That is in minutes,{0.4} less one hour is "
                "53220.{0.1}\nAnswer: 53220",
            ),
            (0, "{0.4}37 × 86400 = 3196800.{0.6} One hour is 360 seconds:{0.1} 3196440.\nAnswer: 3196440"),
            (
                1,
                "{0.4}<calc>(37 * 24 - 1) * 3600</calc>{0.8}[[\n<result>3193200</result>\n]]{0.9}Good.\nAnswer: 3193200",
            ),
        ],
    ),
    (
        "A train leaves at 14:45 and takes 2 hours and 50 minutes. When does it arrive?",
        0.0,
        [
            (0, "{0.5}14:45 plus 2 hours is 16:45.{0.6} Plus 50 minutes is 17:25.{0.1}\nAnswer: 17:25"),
            (1, "{0.5}Three hours later it is 17:45,{0.8} ten minutes less: 17:35.{0.9}\nAnswer: 17:35"),
            (0, "{0.5}14:45 + 2:50 = 16:95,{0.5} so 16:95.{0.1}\nAnswer: 16:95"),
            (0, "{0.5}It arrives in the evening.{0.1}\nAnswer: 18:00"),
        ],
    ),
    (
        "What is 15 % of 260? End with “Answer:” and the number.",
        1.0,
        [
            (1, "{0.7}10 % is 26, 5 % is 13.{0.9} Together 39.\nAnswer: 39"),
            (1, "{0.7}0.15 × 260 = 39.{0.9}\nAnswer: 39"),
            (1, "{0.7}260 × 15 = 3900,{0.8} over 100: 39.\nAnswer: 39"),
            (0, "{0.7}10 % is 26, and half of that is 12.{0.2} Together 38.{0.1}\nAnswer: 38"),
        ],
    ),
    (
        "Write “lantern” backwards. The reward is the share of letters in the right place.",
        0.14,
        [
            (0.14, "{0.3}lantern"),
            (0.29, "{0.3}Backwards:{0.3} n a t n e r l"),
            (0.43, "{0.3}n e r t{0.5} l a n"),
            (0.29, "{0.3}I write it down: l a n t e r n.{0.4}\nnanretl"),
        ],
    ),
]
OPTIONS = {
    "grpo": {},
    "rloo": {},
    "reinforce_pp": {},
    "remax": {},
    "gae": {"gamma": 1.0, "lam": 0.8},
    "turn_gae": {"gamma": 1.0, "lam": 0.95},
}


def split(text):
    """``(pieces, mask, values)`` of one answer."""
    pieces, mask, values = [], [], []
    value, own = 0.5, 1
    for part in re.findall(r"\{[\d.]+\}|\[\[|\]\]|\s?[^\W\d]+|\s?\d{1,3}|\s|[^\w\s{}[\]]", text):
        if part in ("[[", "]]"):
            own = int(part == "]]")
        elif part.startswith("{"):
            value = float(part[1:-1])
        else:
            pieces.append(part)
            mask.append(own)
            values.append(value)
    return pieces, mask, values


def padded(rows, width):
    return torch.tensor([[*row, *[0.0] * (width - len(row))] for row in rows])


def rollouts(questions=QUESTIONS, step=40):
    """These questions and answers as one training step."""
    prompts, pieces, masks, values, scores, greedy, index = [], [], [], [], [], [], []
    for number, (prompt, baseline, answers) in enumerate(questions):
        for score, text in answers:
            found = split(text)
            prompts.append(prompt)
            for kept, new in zip((pieces, masks, values), found, strict=True):
                kept.append(new)
            scores.append(score)
            greedy.append(baseline)
            index.append(f"question-{number}")
    width = max(map(len, pieces))
    rewards = [[0.0] * (len(row) - 1) + [score] for row, score in zip(pieces, scores, strict=True)]
    inputs = {
        "token_level_rewards": padded(rewards, width),
        "response_mask": padded(masks, width),
        "values": padded(values, width),
        "reward_baselines": torch.tensor(greedy),
        "index": index,
    }
    return Rollouts(
        source=f"rollouts/{step}.jsonl", step=step, prompts=prompts, pieces=pieces, exact=True, inputs=inputs
    )


def compared(batch, options=OPTIONS, **more):
    """A batch under these estimators."""
    advantages = {
        name: estimate(name, **batch.inputs, masked_rewards="carry", **option).advantages
        for name, option in options.items()
    }
    return Comparison(rollouts=batch, advantages=advantages, **more)
