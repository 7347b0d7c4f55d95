"""The reward function that verl calls for every answer; it stands alone because verl loads it by its path."""

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
