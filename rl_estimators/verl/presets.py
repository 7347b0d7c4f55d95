"""Presets for verl's command line: ``python -m verl.trainer.main_ppo +algorithm=rle_gae ...``.

A preset sets what a paper fixes: estimator, critic, losses, and where the KL penalty goes. Whatever else stands on
the command line wins over it. They are the YAML files in ``configs/algorithm``, put into Hydra's own store when a
process sets Hydra up, which works the same from a wheel, an editable install and a zip file.

They extend verl's own config group ``algorithm``, because Hydra refuses a name that an existing group does not have.
In a group of ours it would not: without this package ``+rl_estimators=gae`` is a plain value that nobody reads.
"""

from collections.abc import Mapping
from importlib import resources
from types import ModuleType

from rl_estimators import patching

__all__ = ["GROUP", "offer", "texts"]

GROUP = "algorithm"


def offer(module: ModuleType) -> None:
    """Put the presets into Hydra's store, unless nobody would read what they say of losses.

    Without the hook ``verl_need_critic`` a preset would be accepted and its losses not be trained with; Hydra refuses
    a preset that it cannot find.

    Called when Hydra looks for its plugins, which it does before it composes anything. All of verl's processes import
    Hydra and few set it up; the presets take 10 ms to read.
    """
    if not patching.in_force("verl_need_critic"):
        return
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance()
    for name, text in texts().items():
        node = OmegaConf.create(text)
        store.store(group=GROUP, name=name, node=node, package="_global_", provider="rl_estimators")


def texts() -> Mapping[str, str]:
    """The presets' YAML by name."""
    folder = resources.files("rl_estimators.configs") / GROUP
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".yaml")), key=lambda f: f.name)
    return {file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8") for file in files}
