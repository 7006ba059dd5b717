"""A turn that the caller has begun: the last message of a conversation, in the middle of which the prompt ends.

<|start|>assistant<|channel|>analysis<|message|>Warm ones?<|end|><|start|>assistant<|channel|>final<|message|>The colour is
"""

from collections.abc import Mapping, Sequence
import dataclasses

from gptoss_jax.harmony.conversation import assistant_messages
from gptoss_jax.harmony.parsed import Message, Parsed
from gptoss_jax.quoting import quoted
from gptoss_jax.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Continued:
    """The messages of a turn so far; the last one is to be continued.

    Attributes:
        said: channel and text of each.
    """

    said: tuple[tuple[str, str], ...]

    @property
    def channel(self) -> str:
        """Of the message that is to be continued."""
        return self.said[-1][0]

    @property
    def text(self) -> str:
        """Of the message that is to be continued, as far as it goes."""
        return self.said[-1][1]

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """What follows the prompt's `<|start|>assistant`, as if the model had written it: without an end."""
        out: list[int] = []
        for channel, text in self.said:
            out += tokenizer.encode_with_control("<|end|><|start|>assistant") if out else []
            out += tokenizer.encode_with_control(f"<|channel|>{channel}<|message|>") + tokenizer.encode(text)
        return out

    def chat_messages(self, parsed: Parsed) -> list[dict]:
        """The whole turn as chat messages, to stand in the place of the last one.

        Args:
            parsed: what the model wrote, read with the channel of this.
        """
        first, *rest = parsed.messages or (Message("assistant", "", (0, 0), channel=self.channel),)
        before = [Message("assistant", text, (0, 0), channel=channel) for channel, text in self.said[:-1]]
        whole = dataclasses.replace(first, text=self.text + first.text)
        return dataclasses.replace(parsed, messages=(*before, whole, *rest)).to_chat_messages()


def continued(messages: Sequence[Mapping], wanted: bool = True) -> Continued | None:
    """What the last of messages that `to_conversation` takes has begun; None unless it is wanted.

    Raises:
        ValueError: it is no assistant's, or makes calls; or wanted is no bool.
    """
    if not isinstance(wanted, bool):
        raise ValueError(f"continue_final_message must be True or False; got {quoted(wanted)}")
    if not wanted:
        return None
    last = messages[-1]
    if last["role"] != "assistant":
        raise ValueError(
            f"with continue_final_message the last message must be the assistant's; got the role {last['role']}; "
            'append {"role": "assistant", "content": "..."} with the beginning of the answer, or leave continue_final_message out'
        )
    where = f"messages[{len(messages) - 1}]"
    if last.get("tool_calls"):
        raise ValueError(
            f"with continue_final_message the last message must be text; got one with tool_calls ({where}); append the results of the "
            "calls, or leave continue_final_message out"
        )
    return Continued(tuple((message.channel, message.content[0].text) for message in assistant_messages(last, where, {}, ())))
