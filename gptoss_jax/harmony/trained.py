"""A whole conversation, and where loss belongs in it: on what the model itself writes, as it would write it.

    ...<|start|>user<|message|>27 + 58?<|end|><|start|>assistant    the prompt that the model gets of the messages before its last turn
    <|channel|>analysis<|message|>7+8=15<|end|><|start|>assistant<|channel|>final<|message|>85<|return|>      and that turn, all of it

The ids are what the model has before it at the end of that turn, token for token. Earlier turns stand there as every prompt shows them:
an answer ends with <|end|>, which the model never writes there, and reasoning may be gone.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import re

import openai_harmony as oh

from gptoss_jax import tokenizer as tokenizers
from gptoss_jax.harmony.conversation import assistant_messages, to_conversation
from gptoss_jax.harmony.functions import declarations
from gptoss_jax.harmony.header import answers, called
from gptoss_jax.harmony.marks import Marks
from gptoss_jax.harmony.render import ids_of
from gptoss_jax.quoting import quoted, said


@dataclasses.dataclass(frozen=True)
class Rendered:
    """A conversation as the model has it before it.

    Attributes:
        ids: tokens.
        mask: of each, whether it is one to learn.
    """

    ids: list[int]
    mask: list[bool]


@dataclasses.dataclass(frozen=True)
class RenderedMessage:
    """A message of such a conversation, for whoever chooses which are to be learnt.

    Attributes:
        role: "system", "developer", "user", "assistant" or "tool".
        channel, recipient: of the assistant's: "analysis" is reasoning, "final" the answer; "functions.f" is called. None if there is none.
        text: its content; of the developer's the instructions, of the system's nothing.
        index: which of the caller's messages it is of, of instructions at the beginning the first; None for what options make.
        last: it is of the last turn, whose tokens are exactly those that the model would write.
    """

    role: str
    channel: str | None
    recipient: str | None
    text: str
    index: int | None
    last: bool

    @property
    def call(self) -> str | None:
        """The function that it calls, without "functions."; None if it calls none."""
        return called(self.role, self.recipient)

    @property
    def answers(self) -> bool:
        """Whether it is an answer, as `harmony.Message.answers`."""
        return answers(self.role, self.channel, self.recipient)


TrainOn = str | Callable[[RenderedMessage], bool]

_CHOICES: dict[str, Callable[[RenderedMessage], bool]] = {
    "final": lambda one: one.answers,
    "assistant": lambda one: one.role == "assistant",
    "calls": lambda one: one.call is not None,
}


def render_for_training(tokenizer: tokenizers.Tokenizer, messages: Sequence[Mapping], train_on: TrainOn, **options) -> Rendered:
    """A conversation that ends with the assistant's turn, and which of its tokens are to be learnt.

    Of a chosen message these are all that the model writes: its header behind the prompt's `<|start|>assistant`, its content, and the
    token that ends it; with `<|start|>assistant` where the model goes on from one message to the next. The <|end|> of an answer before
    the last turn is none of them: the model ends an answer with <|return|>, and would not stop if it learnt to write <|end|>.

    Args:
        tokenizer: the vocabulary of the ids.
        messages: as for `render`; the last is the assistant's.
        train_on: "final" for answers, "calls" for calls of tools, "assistant" for all of the assistant's messages that are there, or a
            function that says of each `RenderedMessage`, in order, whether it is to be learnt: of another role, all behind its role.
        **options: as for `to_conversation`.

    Raises:
        ValueError: as `render`; the last message is not the assistant's; or `train_on` is none of these, raises, or returns no bool.
    """
    choose = _chooser(train_on)
    conversation = to_conversation(messages, **options)
    whole, owners = conversation.messages, _owners(messages, len(conversation.messages))
    if whole[-1].author.role != oh.Role.ASSISTANT:
        raise ValueError(
            f"with train_on the last message must be the assistant's; got the role {messages[-1]['role']}; append the turn that is to be "
            "learnt, or leave train_on out for the prompt of the next one"
        )
    begin = len(whole) - 1
    while _goes_on(whole[begin - 1]):
        begin -= 1
    parts = _parts(ids_of(tokenizer, Marks(oh.Conversation.from_messages(whole[:begin]), declarations(conversation))), tokenizer)
    turn = _parts(ids_of(tokenizer, Marks(oh.Conversation.from_messages(whole[begin:])), whole=True), tokenizer)
    kept = _kept(whole[:begin])
    first = turn[0]
    turn[0] = parts.pop() + first[_header(first, tokenizer) :]  # the prompt ends with <|start|>assistant
    out, before = Rendered([], []), None
    for number, ids in zip([*kept, *range(begin, len(whole))], parts + turn, strict=True):
        message, last = whole[number], number >= begin
        learn = choose(_view(message, owners[number], last=last))
        own = 0 if before is not None and _goes_on(before) and message.author.role == oh.Role.ASSISTANT else _header(ids, tokenizer)
        end = len(ids) - (not last and answers(*_said(message)))
        out.ids.extend(ids)
        out.mask.extend(learn and own <= i < end for i in range(len(ids)))
        before = message
    return out


def turns(messages: Sequence[Mapping]) -> list[list[Mapping]]:
    """The beginnings of a conversation that end with a turn of the assistant's, one for each: so each turn is once the last.

    Each call ends a turn: of a message that makes several, beginnings end with its first, its first two, and so on.

    Raises:
        ValueError: as `to_conversation`.
    """
    to_conversation(messages)
    found = []
    for i, message in enumerate(messages):
        if message["role"] == "assistant":
            on = i + 1 < len(messages) and messages[i + 1]["role"] == "assistant"
            if not (on and _goes_on(assistant_messages(message, f"messages[{i}]", {}, ())[-1])):
                calls = message.get("tool_calls") or ()
                ends = [{**message, "tool_calls": calls[:n]} for n in range(1, len(calls))]
                found += [[*messages[:i], end] for end in (*ends, message)]
    return found


def _chooser(train_on: TrainOn) -> Callable[[RenderedMessage], bool]:
    if isinstance(train_on, str) and train_on in _CHOICES:
        return _CHOICES[train_on]
    if not callable(train_on):
        raise ValueError(f"train_on must be one of {', '.join(_CHOICES)}, or a function; got {quoted(train_on, 60)}; pass one of them")

    def choose(message: RenderedMessage) -> bool:
        where = "of the options" if message.index is None else f"of messages[{message.index}]"
        try:
            chosen = train_on(message)
        except Exception as error:
            why = f"it raised {said(error)}"
            raise ValueError(f"train_on must say of every message True or False; {why} ({where}, role {message.role}); mend it") from error
        if not isinstance(chosen, bool):
            got = f"got {quoted(chosen, 60)} ({where}, role {message.role})"
            raise ValueError(f"train_on must say of every message True or False; {got}; return bool(...) of it")
        return chosen

    return choose


def _owners(messages: Sequence[Mapping], count: int) -> list[int | None]:
    """Which of the caller's messages each of a conversation's is of."""
    leading = next((i for i, message in enumerate(messages) if message["role"] not in ("system", "developer")), len(messages))
    owners: list[int | None] = []
    for i, message in enumerate(messages[leading:], leading):
        owners += [i] * (len(assistant_messages(message, f"messages[{i}]", {}, ())) if message["role"] == "assistant" else 1)
    made = count - len(owners)
    return [None, *[0 if leading else None] * (made - 1), *owners]


def _kept(messages: Sequence[oh.Message]) -> list[int]:
    """Which messages a prompt shows, by openai_harmony's own rule: it renders them with their numbers for texts."""
    numbered = [message.model_copy(update={"content": [oh.TextContent(text=str(i))]}) for i, message in enumerate(messages)]
    encoding = tokenizers.harmony_encoding()
    ids = encoding.render_conversation_for_completion(oh.Conversation.from_messages(numbered), oh.Role.ASSISTANT)
    return [int(number) for number in re.findall(r"<\|message\|>([0-9]+)<\|", encoding.decode(ids))]


def _parts(ids: Sequence[int], tokenizer: tokenizers.Tokenizer) -> list[list[int]]:
    """The ids of each message, which begin with <|start|>."""
    start = tokenizer.special["<|start|>"]
    begins = [i for i, token in enumerate(ids) if token == start]
    return [list(ids[begin:end]) for begin, end in zip(begins, [*begins[1:], len(ids)], strict=True)]


def _header(ids: Sequence[int], tokenizer: tokenizers.Tokenizer) -> int:
    """Where a message's role ends: at its second control token."""
    control = set(tokenizer.special.values())
    return next(i for i in range(1, len(ids)) if ids[i] in control)


def _said(message: oh.Message) -> tuple[str, str | None, str | None]:
    return message.author.role.value, message.channel, message.recipient


def _goes_on(message: oh.Message) -> bool:
    """Whether the model writes another message behind it in the same turn: it has only reasoned, or said a word before a call."""
    said = _said(message)
    return said[0] == "assistant" and not answers(*said) and called(said[0], said[2]) is None


def _view(message: oh.Message, index: int | None, *, last: bool) -> RenderedMessage:
    [content] = message.content
    text = {oh.TextContent: "text", oh.DeveloperContent: "instructions"}.get(type(content))
    return RenderedMessage(*_said(message), (text and getattr(content, text)) or "", index, last)
