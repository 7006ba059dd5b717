"""What parsing yields: messages, deltas of a stream, tool calls. Data only."""

import dataclasses
import functools

from gptoss_jax import strict_json
from gptoss_jax.harmony.header import answers, called

Span = tuple[int, int]  # [begin, end) in the parsed tokens


@dataclasses.dataclass(frozen=True)
class ToolCall:
    """A call that the model made.

    Attributes:
        name: of the function, without "functions."; the recipient as it stands for anything outside that namespace.
        arguments: the text that the model wrote, valid JSON or not.

    JSON is what RFC 8259 says: NaN, Infinity and 1e999 are none. Of a name that stands twice in an object the last one counts; a lone
    surrogate, which no UTF-8 can hold, becomes U+FFFD.
    """

    name: str
    arguments: str

    @functools.cached_property
    def parsed(self) -> dict | None:
        """The arguments as a dict; None if the model did not write a JSON object."""
        try:
            value = strict_json.loads(self.arguments, unicode=True)
        except ValueError:
            return None
        return value if isinstance(value, dict) else None

    @property
    def valid(self) -> bool:
        return self.parsed is not None


@dataclasses.dataclass(frozen=True)
class Message:
    """One message that could be read.

    Attributes:
        role: "system", "developer", "user", "assistant" or "tool".
        text: its content, without control tokens; invalid UTF-8 reads U+FFFD.
        span: its tokens, header and end included.
        name: of a tool, such as "functions.weather", or of a named author; else None.
        channel: usually "analysis", "commentary" or "final"; None if it names none.
        recipient: such as "functions.weather" or "assistant"; None for the user.
        content_type: such as "json"; None if it names none.
        end: the control token that ended it; None if the stream or another message did.
        content: those of its tokens that its text was read from: without header, `<|message|>` and end, but with control tokens that
            stand in the middle of it. Where no `<|message|>` ended the header, the last ones that spell the text.
    """

    role: str
    text: str
    span: Span
    name: str | None = None
    channel: str | None = None
    recipient: str | None = None
    content_type: str | None = None
    end: str | None = None
    content: Span = (0, 0)

    @property
    def tool_call(self) -> ToolCall | None:
        """The call that this message makes, if it makes one."""
        name = called(self.role, self.recipient)
        return None if name is None else ToolCall(name, self.text)

    @property
    def answers(self) -> bool:
        """Whether it is the answer: the assistant's, no call, and on neither the analysis nor the commentary channel."""
        return answers(self.role, self.channel, self.recipient)


@dataclasses.dataclass(frozen=True)
class Delta:
    """The next piece of a message, whose pieces add up to `Message.text`.

    Attributes:
        message: its index in `Parsed.messages`.
        text: may be empty where it begins or ends the message.
        role, channel, recipient: as the message's.
        begins, ends: whether it is the message's first, and its last; every message has both, perhaps in one.
        content: the tokens of the content whose text is complete with it; those of one message add up to `Message.content`.
    """

    message: int
    text: str
    role: str
    channel: str | None
    recipient: str | None
    begins: bool = False
    ends: bool = False
    content: Span = (0, 0)

    @property
    def answers(self) -> bool:
        """As `Message.answers`."""
        return answers(self.role, self.channel, self.recipient)

    @property
    def calls(self) -> bool:
        """Whether it is of a call's arguments."""
        return called(self.role, self.recipient) is not None


@dataclasses.dataclass(frozen=True)
class Parsed:
    """All that could be read in a stream of tokens.

    Attributes:
        tokens: the stream, as it came.
        messages: in order.
        junk: spans that belong to no message. `messages` and `junk` together cover every token once.
        problems: what is malformed, each with the position of the first token concerned; () for a well-formed stream.
        missing: why the turn is not over, such as a cut in the middle of a message; "" if it is.
    """

    tokens: tuple[int, ...]
    messages: tuple[Message, ...]
    junk: tuple[Span, ...]
    problems: tuple[str, ...]
    missing: str

    @property
    def malformed(self) -> bool:
        return bool(self.problems)

    @property
    def incomplete(self) -> bool:
        return bool(self.missing)

    @property
    def spans(self) -> tuple[Span, ...]:
        """Spans of messages and junk in order, without gap or overlap."""
        return tuple(sorted([message.span for message in self.messages] + list(self.junk)))

    @property
    def final(self) -> str:
        """The answer: the assistant's text on the final channel, on none, or on one that there is not."""
        return "".join(message.text for message in self.messages if message.answers)

    @property
    def reasoning(self) -> str:
        """The assistant's text on the analysis channel."""
        return self._said("analysis")

    @property
    def commentary(self) -> str:
        """What the assistant tells the user on the commentary channel, beside its calls."""
        return self._said("commentary")

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        return tuple(message.tool_call for message in self.messages if message.tool_call)

    def to_chat_messages(self) -> list[dict]:
        """The assistant's messages as chat messages, to append to the history that the next `render` gets.

        As few dicts as keep the order: {"role": "assistant", "reasoning", "channel", "content", "tool_calls"}, each key where there is
        something to say. A call's id is "call_0", "call_1", ... within this turn. Every call can be answered, also one of what is no
        function of ours, such as "browser.search": the history takes its name, and that of its result, as they stand.
        """
        out: list[dict] = []
        rank = 3  # of the last thing put in: reasoning 0, commentary 1, calls 2, final 3; it must grow within a dict, calls may repeat
        calls = 0
        for message in self.messages:
            call = message.tool_call
            if message.role != "assistant" or not (call or message.text):
                continue
            new = 2 if call else {"analysis": 0, "commentary": 1}.get(message.channel, 3)
            if new < rank or new == rank != 2 or (new == 3 and rank in (1, 2)):
                out.append({"role": "assistant"})
            rank = new
            if call:
                function = {"name": call.name, "arguments": call.arguments}
                out[-1].setdefault("tool_calls", []).append({"id": f"call_{calls}", "type": "function", "function": function})
                calls += 1
            elif new == 0:
                out[-1]["reasoning"] = message.text
            else:
                out[-1] |= {"channel": "commentary", "content": message.text} if new == 1 else {"content": message.text}
        return out

    def _said(self, channel: str) -> str:
        said = (m for m in self.messages if m.role == "assistant" and m.channel == channel and not m.tool_call)
        return "".join(message.text for message in said)
