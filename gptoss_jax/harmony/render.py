"""Chat messages to the ids of a prompt, through openai_harmony, in either vocabulary."""

from collections.abc import Mapping, Sequence

import openai_harmony as oh

from gptoss_jax import tokenizer as tokenizers
from gptoss_jax.harmony.conversation import to_conversation


def render(tokenizer: tokenizers.Tokenizer, messages: Sequence[Mapping], **options) -> list[int]:
    """The prompt of the assistant's next turn: the conversation, then `<|start|>assistant`.

    The analysis of a turn that came to a final answer is dropped by openai_harmony's rule; before a pending tool result it stays.
    Text that looks like control tokens stays text in every role, in tool descriptions and in schemas.

    Args:
        tokenizer: the vocabulary of the ids.
        messages: OpenAI-style chat messages, see `to_conversation`.
        **options: reasoning_effort, tools, instructions, current_date, knowledge_cutoff, model_identity of `to_conversation`.

    Raises:
        ValueError: as `to_conversation`, or the conversation cannot be rendered.
    """
    conversation = to_conversation(messages, **options)
    try:
        ids = tokenizers.harmony_encoding().render_conversation_for_completion(conversation, oh.Role.ASSISTANT)
    except (oh.HarmonyError, ValueError, RecursionError) as error:
        raise ValueError(f"openai_harmony cannot render these messages ({str(error)[:200]}); simplify the tools' parameters") from error
    return bridge(ids, tokenizer)


def bridge(ids: Sequence[int], tokenizer: tokenizers.Tokenizer) -> list[int]:
    """o200k_harmony ids in another vocabulary: control tokens map one to one, the text between them is encoded anew.

    <|start|>   user    <|message|>   H i     <|end|>
    200006      1428    200008        12194   200007      o200k_harmony
    4           32      6             460 493 5           a SentencePiece vocabulary
    """
    if isinstance(tokenizer, tokenizers.O200k):
        return list(ids)
    source = tokenizers.harmony_encoding()
    out, text = [], []
    for i in ids:
        if source.is_special_token(i):
            out += tokenizer.encode(source.decode(text))
            out.append(tokenizer.special[source.decode([i])])
            text = []
        else:
            text.append(i)
    return out + tokenizer.encode(source.decode(text))
