"""The page's parts put together: one file that loads nothing and sends nothing."""

import base64
import hashlib
import html
import re
from collections.abc import Sequence
from importlib.resources import files

from rl_estimators.compare.model import Comparison
from rl_estimators.compare.page.payload import payload
from rl_estimators.errors import InputError

__all__ = ["SCRIPTS", "render"]

# In the order in which they stand in the page; each is a file of this package.
SCRIPTS = (
    "numbers.js",
    "text.js",
    "elements.js",
    "overview.js",
    "prompts.js",
    "responses.js",
    "tracks.js",
    "tokens.js",
    "reading.js",
    "page.js",
)


def render(comparisons: Sequence[Comparison], title: str) -> str:
    """The page that shows these comparisons, one for each training step.

    It holds at most 25 steps, 200 responses, 1000 tokens of each and about 10 MB, and says what was left out; its
    numbers of whole batches are of all responses.

    Args:
        comparisons: At least one.
        title: Any text.

    Returns:
        An HTML document of its own. It can be written as UTF-8 whatever the rollouts hold.

    Raises:
        InputError: there is no comparison, or the parts of one do not fit each other.
    """
    if not comparisons:
        raise InputError("no comparison to show; give render at least one")
    style = _read("page.css")
    script = "(() => {\n" + "\n".join(['"use strict";', *map(_read, SCRIPTS)]) + "})();\n"
    parts = {
        "policy": _policy(script, style),
        "title": html.escape(_printable(title)),
        "style": style,
        "script": script,
        "data": payload(comparisons, title),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], _read("page.html"))


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text("utf-8")


def _policy(script: str, style: str) -> str:
    """Nothing may be loaded, sent, framed or run but this very script and style."""
    return (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _printable(title: str) -> str:
    """For the window's title, which no script touches: what cannot be printed is left out."""
    return "".join(c for c in title if c.isprintable())
