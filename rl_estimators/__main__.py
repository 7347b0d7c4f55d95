"""``python -m rl_estimators`` is the command ``rl-estimators``."""

import sys

from rl_estimators.cli import main

sys.exit(main())
