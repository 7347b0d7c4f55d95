"""The smoke task's reward function, with a fault in the first answer to some of the prompts, by their number.

verl loads it by its path; ``RLE_TEST_REWARD`` is the path of the sound one.
"""

import importlib.util
import math
import os

FAULTS = {0: "nan", 1: "infinity", 2: "raise", 8: "none"}  # a step has 8 prompts
_spec = importlib.util.spec_from_file_location("sound_reward", os.environ["RLE_TEST_REWARD"])
_sound = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_sound)
_prompts = set()


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
    fault = None
    if ground_truth not in _prompts:
        fault = FAULTS.get(len(_prompts))
        _prompts.add(ground_truth)
    if fault == "raise":
        raise RuntimeError("made to fail by a test")
    if fault is not None:
        return {"nan": math.nan, "infinity": math.inf, "none": None}[fault]
    return _sound.compute_score(data_source, solution_str, ground_truth)
