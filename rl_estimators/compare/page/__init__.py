"""One HTML file that shows a comparison: the overview, the responses side by side, one response's tokens.

It needs nothing beside itself: style, script and data stand in it, and its policy forbids every request. What the
rollouts say is data to the last character: the script writes it as text, and shows what would be invisible.
"""

from rl_estimators.compare.page.document import render

__all__ = ["render"]
