"""What the run needs, looked up before anything is imported, so that what is missing is said at once."""

import sys
from importlib.metadata import entry_points, version
from importlib.util import find_spec

INSTALL = "pip install 'rl-estimators[verl,see]' (in a checkout: pip install -e '.[verl,see]')"
MODULES = ("torch", "verl", "ray", "transfer_queue", "psutil", "matplotlib")


def problem() -> str | None:
    """Return one sentence that names what is wrong and the command that repairs it, or None."""
    if sys.platform == "win32":
        return "verl does not run on Windows: run this inside WSL (wsl --install)."
    if not (3, 10) <= sys.version_info[:2] < (3, 13):
        found = ".".join(map(str, sys.version_info[:2]))
        return f"Python {found} cannot run verl 0.9: python3.12 -m venv .venv, then {INSTALL}"
    missing = [name for name in MODULES if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} cannot be found: {INSTALL}"
    if not version("verl").startswith("0.9."):
        return f"verl {version('verl')} is installed, verl 0.9 is wanted: {INSTALL}"
    if "rl_estimators" not in {plugin.name for plugin in entry_points(group="verl.plugins")}:
        return f"verl does not know rl_estimators, which is not installed: {INSTALL}"
    return None
