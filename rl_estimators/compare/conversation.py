"""A prompt or a response in messages, as people read it."""

import json
from typing import Any

from rl_estimators.compare.values import shown
from rl_estimators.errors import InputError

__all__ = ["Parts", "parts", "prompt_of"]

Parts = tuple[tuple[str, bool], ...]


def prompt_of(value: Any, name: str = "prompt") -> tuple[str | None, str | None]:
    """A prompt as people read it, and as what tells prompts apart.

    A lone message is its text; of several each begins with its role.

    Raises:
        InputError: it is neither text nor messages.
    """
    if value is None:
        return None, None
    if isinstance(value, str):
        return value, value
    spoken = [(_role(name, message), _said(name, message)) for message in _messages(name, value)]
    read = spoken[0][1] if len(spoken) == 1 else "\n".join(f"{role}: {said}" for role, said in spoken)
    return read, json.dumps(spoken)


def parts(value: Any, name: str) -> Parts:
    """A response's texts in order, each with whether the policy wrote it: an assistant's message is, a tool's is not.

    Raises:
        InputError: it is neither text nor messages.
    """
    if isinstance(value, str):
        return ((value, True),)
    return tuple(
        (_said(name, message), _role(name, message) == "assistant") for message in _messages(name, value)
    )


def _messages(name: str, value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(message, dict) for message in value):
        raise InputError(f"{name} is {shown(value)}, expected text or a list of messages")
    if not value:
        raise InputError(f"{name} is an empty list, expected text or messages")
    return value


def _role(name: str, message: dict[str, Any]) -> str:
    role = message.get("role")
    if not isinstance(role, str):
        raise InputError(f"{name} holds a message without a role")
    return role


def _said(name: str, message: dict[str, Any]) -> str:
    """A message's text, and the tools it calls."""
    said = [_content(name, message.get("content"))]
    calls = message.get("tool_calls") or []
    said += [json.dumps(call, ensure_ascii=False, default=str) for call in calls]
    return "\n".join(part for part in said if part)


def _content(name: str, content: Any) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        # what is no text, an image say, is named
        return "".join(str(part.get("text") or f"[{part.get('type')}]") for part in content)
    raise InputError(f"{name} holds a message whose content is {shown(content)}, expected text")
