"""Chats as prompts: messages become text by the template of the tokenizer itself, and nothing is added to that.

The template writes the special tokens too, so its text is tokenised as it stands, which is what
`tokenizer.apply_chat_template` does. The prompt ends where the assistant's answer starts: behind the generation
prompt, or, if the last message is the assistant's, in the middle of that.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from acdc.errors import TaskError

ROLES = ("system", "developer", "user", "assistant", "tool")

LEFT_OUT = "the chat template leaves out what a message says"
DATED = "the chat template writes today's date, so that the same chat has other tokens on another day"


@dataclasses.dataclass(frozen=True)
class Message:
    """A message of a chat; the role is one of `ROLES`."""

    role: str
    content: str


Chat = tuple[Message, ...]


def check_template(tokenizer: Any, name: str) -> None:
    """Raise a `TaskError` if the tokenizer of the model of that name has no chat template."""
    if not getattr(tokenizer, "chat_template", None):
        raise TaskError(
            f"the tokenizer of {name} has no chat template, so it takes no messages: write texts instead"
        )


def render(chat: Chat, tokenizer: Any) -> tuple[str, tuple[str, ...]]:
    """The text of a chat, up to where the assistant's answer goes on, and remarks about it.

    Raises:
        ValueError: the template does not take these messages; says why.
    """
    continued = chat[-1].role == "assistant"
    try:
        text = tokenizer.apply_chat_template(
            [dataclasses.asdict(message) for message in chat],
            tokenize=False,
            add_generation_prompt=not continued,
            continue_final_message=continued,
        )
        template = tokenizer.get_chat_template()
    except Exception as error:  # a template is a program, and may raise what it likes
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"the tokenizer's chat template refuses the messages: {reason!r:.200}") from None
    remarks = [LEFT_OUT] if any(message.content.strip() not in text for message in chat) else []
    if "strftime_now" in template:
        remarks.append(DATED)
    return text, tuple(remarks)
