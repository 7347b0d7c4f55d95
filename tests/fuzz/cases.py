"""How many cases there are, and how many have been tried."""

import os
from collections import Counter
from math import ceil

from hypothesis import HealthCheck, settings

import rl_estimators

VARIABLE = "RL_ESTIMATORS_FUZZ"  # how many cases in all
ESTIMATORS = rl_estimators.list_adv_est()
POLICY_LOSSES, VALUE_LOSSES = rl_estimators.list_policy_loss(), rl_estimators.list_value_loss()
NUMBER = len(ESTIMATORS) + len(POLICY_LOSSES) + len(VALUE_LOSSES)
A_FEW = 12 * NUMBER

WANTED = int(os.environ.get(VARIABLE) or A_FEW)
EACH = ceil(WANTED / NUMBER)
tried: Counter = Counter()  # by kind

# A short run tries the same cases on every machine; a long one new ones each time, and keeps those that fail.
SETTINGS = settings(
    max_examples=EACH,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    print_blob=True,
    **({} if VARIABLE in os.environ else {"derandomize": True, "database": None}),
)
