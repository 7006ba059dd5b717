"""nano's vocabulary: a SentencePiece character model in which boilerplate phrases and frequent words are one piece each.

Digits are single pieces.  Harmony's tokens are *control symbols*: no text encodes to them, so nobody can forge a header.
Names and cities have no piece with a leading space, so that a copied name is the same piece wherever it stands.
"""

import collections
import io
import random
import re

import sentencepiece

from checkpoints import nano_conversations, nano_prompts, nano_tasks
from gptoss_jax.tokenizer import CONTROL

_FUNCTIONS = "# Tools\n\n## functions\n\nnamespace functions {\n\n"
PHRASES = (
    nano_prompts.IDENTITY, "\nCurrent date: ", "\n\nReasoning: low", "\n\nReasoning: medium", "\n\nReasoning: high",
    nano_prompts.CHANNELS, nano_prompts.TOOL_CHANNEL, "# Instructions\n\n", "\n\n" + _FUNCTIONS, _FUNCTIONS,
    "// ", "\ntype ", " = (_: {\n", ": string,\n", "}) => any;\n\n", "} // namespace functions",
    "system", "developer", "user", "assistant", "analysis", "commentary", "final", " to=functions.", "functions.", " to=assistant", "json",
    " + ", " - ", " = ", ", ", ": ", "? ", ". ", "\n\n", "\n", '{"', '": "', '"}', "get_weather", "get_time",
    ". Ones: ", ". Tens: ", ", write ", ", carry ", ", borrow ", ". So ", ". Compare: ", "In columns: ", ", larger ", ", smaller ",
    " has a ", " lives in ", " likes ", " days", " day",
)  # fmt: skip
NAMED = (*nano_tasks.NAMES, *nano_tasks.CITIES, *nano_tasks.DAYS, *nano_tasks.COLOURS, *nano_tasks.THINGS)
SPLIT = re.compile("(" + "|".join(map(re.escape, CONTROL)) + ")")


def build(vocab_size: int, conversations: int = 20_000) -> bytes:
    """The SentencePiece model for a corpus of training conversations, of every task as many."""
    rng, counts = random.Random(0), collections.Counter()
    known = re.compile("|".join(map(re.escape, sorted(PHRASES, key=len, reverse=True))) + "|" + "|".join(rf"\b{name}\b" for name in NAMED))
    for i in range(conversations):
        task = nano_conversations.TASKS[i % len(nano_conversations.TASKS)]
        example = nano_conversations.make(task, rng.choice(nano_prompts.EFFORTS), rng)
        for text in SPLIT.split(example.prompt + example.completion):
            if text not in CONTROL:
                for part in known.split(re.sub(r'"\w+"\}', "", text)):
                    counts.update(re.findall(r" ?[A-Za-z']{2,}", part))
    letters = [chr(i) for i in range(32, 127)]
    room = vocab_size - 1 - len(CONTROL) - 256 - len(letters) - len(PHRASES) - len(NAMED)
    words = [word for word in counts if counts[word] >= 20 and word not in NAMED]
    words.sort(key=lambda word: (-counts[word] * (len(word) - 1), word))
    pieces = [piece.replace(" ", "\u2581") for piece in (*PHRASES, *NAMED, *sorted(words[:room]))]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["".join(letters)] * 100), model_writer=model, model_type="char", vocab_size=vocab_size,
        hard_vocab_limit=False, byte_fallback=True, normalization_rule_name="identity", add_dummy_prefix=False,
        remove_extra_whitespaces=False, control_symbols=list(CONTROL), user_defined_symbols=pieces, character_coverage=1.0,
        unk_id=0, bos_id=-1, eos_id=-1, pad_id=-1, minloglevel=2,
    )  # fmt: skip
    return model.getvalue()
