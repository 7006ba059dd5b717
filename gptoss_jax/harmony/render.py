"""Chat messages to the ids of a prompt, through openai_harmony, in either vocabulary."""

from collections.abc import Mapping, Sequence

import openai_harmony as oh

from gptoss_jax import tokenizer as tokenizers
from gptoss_jax.harmony.continued import continued
from gptoss_jax.harmony.conversation import to_conversation
from gptoss_jax.harmony.functions import declarations
from gptoss_jax.harmony.marks import Marks
from gptoss_jax.quoting import quoted


def render(tokenizer: tokenizers.Tokenizer, messages: Sequence[Mapping], *, continue_final_message: bool = False, **options) -> list[int]:
    """The prompt of the assistant's next turn: the conversation, then `<|start|>assistant`.

    The analysis of a turn that came to a final answer is dropped by openai_harmony's rule; before a pending tool result it stays.
    Text that looks like control tokens stays text in every role, in tool descriptions and in schemas.

    Args:
        tokenizer: the vocabulary of the ids.
        messages: OpenAI-style chat messages, see `to_conversation`.
        continue_final_message: the last message is the assistant's, and the prompt ends in the middle of it: of its content, after its
            reasoning as a whole message; of its reasoning, if it has no content. No text is taken away, and none added.
        **options: reasoning_effort, tools, instructions, current_date, knowledge_cutoff, model_identity of `to_conversation`.

    Raises:
        ValueError: as `to_conversation`, or the conversation cannot be rendered, or its last message not be continued.
    """
    conversation = to_conversation(messages, **options)
    turn = continued(messages, continue_final_message)
    if turn is not None:
        conversation = oh.Conversation.from_messages(conversation.messages[: -len(turn.said)])
    ids = ids_of(tokenizer, Marks(conversation, declarations(conversation)))
    return ids if turn is None else ids + turn.ids(tokenizer)


def ids_of(tokenizer: tokenizers.Tokenizer, marks: Marks, *, whole: bool = False) -> list[int]:
    """The prompt of a conversation with marks in it; raises a ValueError if openai_harmony refuses it.

    Args:
        whole: no prompt, but the conversation itself, with all reasoning and with what ends the last turn.
    """
    encoding = tokenizers.harmony_encoding()
    try:
        if whole:
            ids = encoding.render_conversation_for_training(marks.conversation, oh.RenderConversationConfig(auto_drop_analysis=False))
        else:
            ids = encoding.render_conversation_for_completion(marks.conversation, oh.Role.ASSISTANT)
    except (oh.HarmonyError, ValueError, RecursionError) as error:
        got = quoted(str(error))
        raise ValueError(f"messages must be such as openai_harmony renders; got {got} from it; drop what it names") from error
    return bridge(ids, tokenizer, marks)


def bridge(ids: Sequence[int], tokenizer: tokenizers.Tokenizer, marks: Marks | None = None) -> list[int]:
    """o200k_harmony ids in a vocabulary: control tokens map one to one, the text between them is encoded anew if need be.

    <|start|>   user    <|message|>   H i     <|end|>
    200006      1428    200008        12194   200007      o200k_harmony
    4           32      6             460 493 5           a SentencePiece vocabulary

    Args:
        marks: those in the text, whose places are taken by what they stand for.
    """
    source = tokenizers.harmony_encoding()
    same = isinstance(tokenizer, tokenizers.O200k)
    out, stretch = [], []
    for i in [*ids, None]:
        if i is not None and not source.is_special_token(i):
            stretch.append(i)
            continue
        text = source.decode(stretch)
        whole = marks.restore(text) if marks else text
        out += stretch if same and whole == text else tokenizer.encode(whole)
        out += [] if i is None else [tokenizer.special[source.decode([i])]]
        stretch = []
    return out
