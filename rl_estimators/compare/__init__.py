"""Estimators side by side on rollouts that were really made: who is praised, who is blamed, and for what."""

from rl_estimators.compare.choices import Choice, all_choices, read_choices
from rl_estimators.compare.model import Comparison, Rollouts
from rl_estimators.compare.reading import FORMATS, Reader
from rl_estimators.compare.running import compare
from rl_estimators.compare.tensors import save
from rl_estimators.files.problems import Problems

__all__ = [
    "FORMATS",
    "Choice",
    "Comparison",
    "Problems",
    "Reader",
    "Rollouts",
    "all_choices",
    "compare",
    "read_choices",
    "save",
]
