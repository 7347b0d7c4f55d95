"""A reward function that returns its components: how many digits are in place, and whether there are as many as asked.

The score is that of ``examples/digit_sort/reward.py``, so a test can tell from a response's score and one component
what the other must be.
"""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    hits = sum(given == wanted for given, wanted in zip(solution_str, ground_truth, strict=False))
    places, length = hits / len(ground_truth), float(len(solution_str) == len(ground_truth))
    return {"score": places * (1 + length) / 2, "places": places, "length": length}
