"""Short marks that stand in a conversation for long texts and for functions, as long as openai_harmony has it.

openai_harmony frames a conversation well, but it panics or takes minutes where a text holds a long run of one kind of character, and it
says but a part of a function's JSON schema. So it gets marks, and what they stand for takes their places once it has rendered.
"""

from collections.abc import Iterator, Mapping
import json
import re

import openai_harmony as oh

LONGEST = 1_000  # characters of a text that openai_harmony gets as it is
_OPENING = "\ue000"  # of private use; a mark is this, a number that follows it nowhere in the texts, and a number of its own
_FIELDS = ("text", "instructions", "model_identity", "knowledge_cutoff")


class Marks:
    """A conversation with marks in it, and what they stand for.

    Args:
        conversation: stays as it is.
        declarations: what is to stand for each function, by its name: the comments above it and the declaration, with no line break at
            the end. None leaves functions to openai_harmony.
        longest: texts of more characters get a mark.

    Attributes:
        conversation: with the marks in it, for openai_harmony.
    """

    def __init__(self, conversation: oh.Conversation, declarations: Mapping[str, str] | None = None, *, longest: int = LONGEST):
        self._declarations, self._longest = declarations, longest
        self._stands_for: list[str] = []
        texts = [*_texts(conversation), *(declarations or {}).values()]
        used = {number for text in texts for number in re.findall(rf"{_OPENING}([0-9]+)\.", text)}
        self._prefix = next(f"{_OPENING}{i}." for i in range(len(used) + 1) if str(i) not in used)
        mark = rf"{re.escape(self._prefix)}([0-9]+)\."
        self._mark = re.compile(rf"// {mark}\ntype [\w-]+ = \(\) => any;|{mark}")
        self.conversation = oh.Conversation.from_messages(
            [message.model_copy(update={"content": [self._content(one) for one in message.content]}) for message in conversation.messages]
        )

    def restore(self, text: str) -> str:
        """What openai_harmony made of the conversation, with what the marks stand for in their places."""
        return self._mark.sub(lambda found: self._stands_for[int(found[1] or found[2])], text)

    def _content(self, content: oh.Content) -> oh.Content:
        marked = {name: self._put(text) for name, text in _texts_of(content) if len(text) > self._longest}
        if self._declarations is not None and isinstance(content, oh.DeveloperContent) and content.tools:
            marked["tools"] = {
                name: space.model_copy(update={"tools": [self._bare(tool) for tool in space.tools]})
                for name, space in content.tools.items()
            }
        return content.model_copy(update=marked)

    def _bare(self, tool: oh.ToolDescription) -> oh.ToolDescription:
        """A function of which there is nothing to say but a mark, which openai_harmony writes above it."""
        return oh.ToolDescription(name=tool.name, description=self._put(self._declarations[tool.name]), parameters=None)

    def _put(self, text: str) -> str:
        self._stands_for.append(text)
        return f"{self._prefix}{len(self._stands_for) - 1}."


def _texts_of(content: oh.Content) -> list[tuple[str, str]]:
    """The texts in a content that callers wrote, by the names of their fields."""
    return [(name, vars(content)[name]) for name in _FIELDS if vars(content).get(name)]


def _texts(conversation: oh.Conversation) -> Iterator[str]:
    for message in conversation.messages:
        for content in message.content:
            yield from (text for _, text in _texts_of(content))
            for space in (getattr(content, "tools", None) or {}).values():
                yield from (tool.description + json.dumps(tool.parameters, ensure_ascii=False) for tool in space.tools)
