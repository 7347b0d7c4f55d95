"""What happens to a command line of `main_ppo` before Ray starts: run in a process with the command's environment.

Reads command lines as JSON from standard input, composes each as verl does, and has our checks and verl's own look at it.
Writes ``ok``, or what is wrong, for each.
"""

import contextlib
import io
import json
import sys
import warnings

warnings.simplefilter("ignore")


def main() -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        from hydra import compose, initialize_config_module
        from hydra.core.override_parser.overrides_parser import OverridesParser
        from omegaconf import OmegaConf
        from verl.trainer.ppo.utils import need_critic
        from verl.utils.config import validate_config

    def composed(overrides: list[str]) -> object:
        """Without groups among the overrides what Hydra does with them is quicker done on the stock configuration."""
        parsed = OverridesParser.create().parse_overrides(overrides)
        if any(one.key_or_group == "algorithm" for one in parsed):
            return compose("ppo_trainer", overrides)
        config = stock.copy()
        for one in parsed:
            OmegaConf.update(config, one.key_or_group, one.value(), force_add=one.is_add())
        return config

    answers = []
    with initialize_config_module("verl.trainer.config", version_base=None):
        stock = compose("ppo_trainer")
        for overrides in json.load(sys.stdin):
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    config = composed([one for one in overrides if one != "..."])
                    critic = need_critic(config)
                    if "..." not in overrides:  # a whole command
                        validate_config(config, use_reference_policy=False, use_critic=critic)
                answers.append("ok")
            except Exception as error:
                answers.append(f"{type(error).__name__}: {error}")
    json.dump(answers, sys.stdout)


main()
