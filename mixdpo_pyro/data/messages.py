"""Texts and messages, as TRL takes them: what they have to be, and their text."""

import json
from typing import Any

from mixdpo_pyro.data.tables import SURROGATE

__all__ = ["TEXT_RULE", "fault_of_pair", "fault_of_text", "join_parts", "text_of"]

TEXT_RULE = "text or a list of messages with 'role' and 'content'"

_BESIDES = ("tool_calls", "function_call", "thinking", "reasoning_content")
"""Fields that a message may have beside its content, or in place of it."""


def text_of(value: str | list[dict[str, Any]]) -> str:
    """The text of a response: messages run together, with calls of tools as JSON."""
    if isinstance(value, str):
        return value
    return "".join(_message_text(message) for message in join_parts(value))


def join_parts(value: Any) -> Any:
    """The value, with contents that are lists of text parts as one text.

    Chat templates of text models take a list for text and write it out as Python does, brackets
    and all; those of vision models run the texts together, as is done here.
    """
    if not isinstance(value, list):
        return value
    return [
        {**message, "content": "".join(part["text"] for part in message["content"])}
        if isinstance(message, dict) and _is_parts(message.get("content"))
        else message
        for message in value
    ]


def fault_of_text(value: object) -> str | None:
    """What a value would have to be to be a text or messages, in words; None if it is."""
    if isinstance(value, str):
        return "text without lone surrogates" if SURROGATE.search(value) else None
    if not isinstance(value, list):
        return TEXT_RULE
    return next(filter(None, map(_fault_of_message, value)), None)


def fault_of_pair(values: dict[str, Any]) -> tuple[str, str] | None:
    """Column and what it would have to hold, where texts that are good by themselves do not fit.

    TRL looks at one of the columns, or joins them blindly: it takes messages written as JSON for
    text, and a prompt that the responses repeat for two.
    """
    chosen, rejected = values["chosen"], values["rejected"]
    if _is_json(chosen) and _is_json(rejected):
        return "chosen", f"{TEXT_RULE}, not messages as JSON text (write them as lists)"
    if isinstance(chosen, list) != isinstance(rejected, list):
        return "chosen", "text or messages as in 'rejected'"
    prompt = values.get("prompt")
    if prompt is None:
        are_messages = isinstance(chosen, list) and chosen and rejected
        is_apart = are_messages and chosen[0] != rejected[0]
        return ("chosen", "messages that begin like those of 'rejected'") if is_apart else None
    if isinstance(prompt, list) != isinstance(chosen, list):
        return "prompt", f"text or messages as in 'rejected' ({_hint(prompt, chosen)})"
    if isinstance(prompt, list):
        return _fault_of_prompt(prompt, chosen, rejected)
    return None


def _hint(prompt: Any, chosen: Any) -> str:
    """How to mend a prompt of another kind than the responses."""
    if isinstance(prompt, list):
        return "write the responses as [{'role': 'assistant', 'content': ...}]"
    if chosen and any(prompt == message.get("content") for message in chosen[:-1]):
        return "drop the column 'prompt': the messages hold it"
    return "write it as [{'role': 'user', 'content': ...}]"


def _fault_of_prompt(prompt: list, chosen: list, rejected: list) -> tuple[str, str] | None:
    if not prompt:
        return "prompt", "at least one message"
    said = [_said(messages[: len(prompt)]) for messages in (prompt, chosen, rejected)]
    if said[0] == said[1] == said[2]:
        return "prompt", "messages that the responses do not repeat (drop the column 'prompt')"
    return None


def _said(messages: list[dict[str, Any]]) -> list[tuple[Any, Any]]:
    return [(message["role"], message.get("content")) for message in messages]


def _message_text(message: dict[str, Any]) -> str:
    besides = [message[name] for name in _BESIDES if message.get(name)]
    return "".join(
        value if isinstance(value, str) else json.dumps(value, sort_keys=True)
        for value in (*besides, message.get("content") or "")
    )


def _is_parts(content: object) -> bool:
    return isinstance(content, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in content
    )


def _fault_of_message(message: object) -> str | None:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        is_other = isinstance(message, dict) and {"from", "value"} <= message.keys()
        return f"{TEXT_RULE} (rename 'from' and 'value')" if is_other else TEXT_RULE
    content = message.get("content")
    if content is None:
        has_more = any(message.get(name) for name in _BESIDES)
        return None if has_more else f"{TEXT_RULE}, or with 'tool_calls'"
    if isinstance(content, list) and not _is_parts(content):
        return f"{TEXT_RULE}, whose parts are text (images and the like are not read)"
    if not isinstance(content, str | list):
        return TEXT_RULE
    is_broken = SURROGATE.search(text_of([message]))
    return "text without lone surrogates" if is_broken else None


def _is_json(value: object) -> bool:
    """Whether a text is a list of messages, written as JSON."""
    if not isinstance(value, str) or not value.lstrip().startswith("[") or '"role"' not in value:
        return False
    try:
        messages = json.loads(value)
    except (ValueError, RecursionError):
        return False
    return bool(messages) and all(isinstance(m, dict) and "role" in m for m in messages)
