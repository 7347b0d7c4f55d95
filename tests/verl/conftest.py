"""verl's real configuration, and overrides on it."""

import functools

import pytest


@pytest.fixture(scope="session")
def overridden():
    """A copy of a configuration with overrides, read by Hydra's own parser; to compose it anew takes a second."""
    pytest.importorskip("hydra")
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from omegaconf import OmegaConf

    def with_overrides(stock, *overrides):
        config = stock.copy()
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            OmegaConf.update(config, override.key_or_group, override.value(), force_add=override.is_add())
        return config

    return with_overrides


@pytest.fixture(scope="session")
def stock():
    """What `main_ppo` composes, with two responses a prompt: verl's default of 1 makes no groups."""
    pytest.importorskip("verl.trainer.ppo.utils")
    from hydra import compose, initialize_config_module

    with initialize_config_module("verl.trainer.config", version_base=None):
        return compose("ppo_trainer", ["actor_rollout_ref.rollout.n=2"])


@pytest.fixture
def compose(stock, overridden):
    """verl's real configuration with overrides as from a command line."""
    return functools.partial(overridden, stock)
