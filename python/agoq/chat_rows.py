"""Rows of conversations: `messages` as transformers takes them, ShareGPT and Alpaca."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from agoq.chat_template import Conversation, Message
from agoq.command import UserError

Row = dict[str, Any]

SHAREGPT_ROLES = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant",
    "chatgpt": "assistant", "bing": "assistant", "bard": "assistant", "bot": "assistant", "model": "assistant",
    "function_call": "assistant", "tool": "tool", "observation": "tool", "function_response": "tool"}
REASONING = ("reasoning_content", "thinking", "reasoning")  # the first one that holds something counts
# What apply_chat_template takes itself and does not pass on to the template.
NOT_VARIABLES = {
    "conversation", "messages", "tools", "documents", "tokenize", "continue_final_message", "sanitize_control_tokens",
    "padding", "truncation", "max_length", "return_tensors", "return_dict", "return_assistant_tokens_mask",
    "tokenizer_kwargs"}


@dataclass(frozen=True)
class ChatRow:
    talk: Conversation
    template: str | None  # the name of a template, or its text, where the row brings one
    silent: set[int]  # messages of the assistant that do not count in the loss


def read_row(row: Row, chat_format: str | None) -> ChatRow:
    """The conversation of a row. Messages are treated as transformers treats them before a template sees them."""
    messages = FORMATS[chat_format or detect(row)](row)
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise UserError(f"message {number} needs a 'role' (a string)")
    variables = dict(object_of(row, "chat_template_kwargs"))
    for name in sorted(NOT_VARIABLES & variables.keys()):
        raise UserError(f"'chat_template_kwargs' holds '{name}', which is no variable of a template"
                        + (f": make '{name}' a key of the row" if name in ("tools", "documents") else ""))
    template = variables.pop("chat_template", None)
    if template is not None and not isinstance(template, str):
        raise UserError(f"'chat_template' of 'chat_template_kwargs' must be a string, {found(template)}")
    talk = Conversation(
        [tidy(message) for message in messages], objects_of(row, "tools"), objects_of(row, "documents"),
        prompt=variables.pop("add_generation_prompt", False), variables=variables)
    return ChatRow(talk, template, {at for at, message in enumerate(messages) if weight_of(message, at + 1) == 0})


def detect(row: Row) -> str:
    for name, keys in (("messages", ("messages",)), ("sharegpt", ("conversations",)),
                       ("alpaca", ("instruction", "output"))):
        if all(row.get(key) is not None for key in keys):
            return name
    names = ", ".join(map(repr, row)) or "no keys"
    raise UserError("no conversation: expected a key 'messages' (a list of {\"role\", \"content\"}), 'conversations' "
                    "(ShareGPT: a list of {\"from\", \"value\"}), or 'instruction' and 'output' (Alpaca); found "
                    + names)


def from_messages(row: Row) -> list[Message]:
    return list_of(row, "messages")


def from_sharegpt(row: Row) -> list[Message]:
    turns = [sharegpt_message(turn, number) for number, turn in enumerate(list_of(row, "conversations"), 1)]
    return system_of(row) + turns


def sharegpt_message(turn: Any, number: int) -> Message:
    if isinstance(turn, dict) and "role" in turn and "from" not in turn:  # in the form of 'messages'
        return turn
    if not isinstance(turn, dict) or not isinstance(turn.get("from"), str) or not isinstance(turn.get("value"), str):
        raise UserError(f"message {number} of 'conversations' needs 'from' and 'value' (strings)")
    role = SHAREGPT_ROLES.get(turn["from"].lower())
    if role is None:
        raise UserError(f"message {number} is from '{turn['from']}': known are {', '.join(SHAREGPT_ROLES)}")
    message = {"role": role} | {key: value for key, value in turn.items() if key not in ("from", "value")}
    if turn["from"].lower() == "function_call":
        return message | {"tool_calls": tool_calls(turn["value"], number)}
    return message | {"content": turn["value"]}


def tool_calls(value: str, number: int) -> list[Row]:
    """The call, or list of calls, that a ShareGPT row has as text."""
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    calls = parsed if isinstance(parsed, list) else [parsed]
    for call in calls:
        if not isinstance(call, dict) or not isinstance(call.get("name"), str):
            raise UserError(f"message {number} is from 'function_call': 'value' must be a JSON object with 'name' and "
                            "'arguments', or a list of them")
    return [{"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
            for call in calls]


def from_alpaca(row: Row) -> list[Message]:
    question = text_of(row, "instruction")
    extra = text_of(row, "input", default="")
    messages = system_of(row)
    history = row.get("history") or []
    for number, pair in enumerate(history if isinstance(history, list) else [history], 1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise UserError(f"entry {number} of 'history' must be a list of two strings: question and answer")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return [*messages, {"role": "user", "content": f"{question}\n{extra}" if extra else question},
            {"role": "assistant", "content": text_of(row, "output")}]


FORMATS: dict[str, Callable[[Row], list[Message]]] = {
    "messages": from_messages, "sharegpt": from_sharegpt, "alpaca": from_alpaca}


def system_of(row: Row) -> list[Message]:
    system = text_of(row, "system", default="")
    return [{"role": "system", "content": system}] if system else []


def tidy(message: Message) -> Message:
    """Nulls are absent keys, and reasoning stands under both names that templates read."""
    message = {key: value for key, value in message.items() if value is not None}
    name = next((name for name in REASONING if name in message), None)
    if name is None:
        return message
    return {"thinking": message[name]} | message | {"reasoning_content": message[name]}


def weight_of(message: Message, number: int) -> float:
    weight = message.get("weight")
    if weight not in (None, 0, 1):
        raise UserError(f"message {number} has weight {weight!r}: 0 leaves an answer out of the loss, 1 counts it")
    return 1 if weight is None else weight


def found(value: Any) -> str:
    return f"found {type(value).__name__}"


def text_of(row: Row, key: str, default: str | None = None) -> str:
    value = row.get(key, default)
    value = default if value is None else value
    if not isinstance(value, str):
        raise UserError(f"'{key}' must be a string, {found(value)}")
    return value


def list_of(row: Row, key: str) -> list[Any]:
    value = row.get(key)
    if not isinstance(value, list) or not value:
        raise UserError(f"expected a key '{key}' with a list of messages that is not empty")
    return value


def object_of(row: Row, key: str) -> Row:
    value = row.get(key)
    if value is not None and not isinstance(value, dict):
        raise UserError(f"'{key}' must be an object, {found(value)}")
    return value or {}


def objects_of(row: Row, key: str) -> list[Row] | None:
    """A list of objects, also as the JSON text of one. None where the row has none."""
    value = row.get(key)
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise UserError(f"'{key}' must be a list of objects, found a string that is not JSON: {error}") from None
    if value is not None and not (isinstance(value, list) and all(isinstance(item, dict) for item in value)):
        raise UserError(f"'{key}' must be a list of objects")
    return value
