"""The reward function, as verl calls it and as TRL does; it stands alone because both load it by its path."""

from typing import Any


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    **kwargs: Any,
) -> float:
    """Return the share of digits at the right place, halved if the answer has the wrong length.

    Args:
        data_source: the data set's name; verl passes it, one data set needs no look.
        solution_str: the model's answer, special tokens removed.
        ground_truth: the sorted digits.
        extra_info: what the data set says about the row, unused.
        kwargs: what other reward managers of verl pass besides, unused.

    Returns:
        A number from 0 (no digit right) to 1 (all right and nothing more).
    """
    hits = sum(given == wanted for given, wanted in zip(solution_str, ground_truth, strict=False))
    share = hits / len(ground_truth)
    return share if len(solution_str) == len(ground_truth) else share / 2


def digits_in_place(completions: list[str], answer: list[str], **kwargs: Any) -> list[float]:
    """Return the same for a batch, which is how TRL asks.

    Args:
        completions: the model's answers.
        answer: the sorted digits, a column of the data set.
        kwargs: what TRL passes besides, unused.
    """
    return [compute_score("", *pair) for pair in zip(completions, answer, strict=True)]


def digit_by_digit(
    completions: list[str], completion_ids: list[list[int]], answer: list[str], **kwargs: Any
) -> list[list[float]]:
    """Return a number per token, a process reward for TRL: each right digit's share when it is written.

    The last token gives back what the others got, so that a completion's rewards still sum up to `digits_in_place`. This
    says sooner what was good, and does not change what is best (Ng, Harada and Russell 1999, potential-based shaping).

    Args:
        completions: the model's answers.
        completion_ids: their tokens; a token is a character here.
        answer: the sorted digits, a column of the data set.
        kwargs: what TRL passes besides, unused.
    """
    rewards = []
    for text, ids, wanted in zip(completions, completion_ids, answer, strict=True):
        right = [place < len(text) and text[place] == digit for place, digit in enumerate(wanted)][: len(ids)]
        tokens = [one / len(wanted) for one in right] + [0.0] * (len(ids) - len(right))
        tokens[-1] -= sum(tokens)
        rewards.append(tokens)
    return rewards
