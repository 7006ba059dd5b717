"""The headers that the messages of a turn may have where not every header may come, each in one spelling.

    <|channel|>analysis<|message|>            <|channel|>commentary to=functions.f <|constrain|>json<|message|>

The tokens are those that an encoder takes for the text, as models learn them. So a header is a walk down a tree of tokens, and what
it says of its message is known when it ends, without reading it.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from gptoss_jax.grammar.kept import Kept
from gptoss_jax.tokenizer import Tokenizer


class Said(NamedTuple):
    """What a header says: the channel, and the function that its message calls, None if it calls none."""

    channel: str
    function: str | None = None


type Tree = dict[int, "Tree | Said"]
"""By the next token: what may follow it, or, of the last one, what was said."""

_kept: Kept[tuple[Tree, Tree]] = Kept(32, 500_000)


def trees(tokenizer: Tokenizer, functions: Sequence[str], *, required: bool) -> tuple[Tree, Tree]:
    """The headers of the first message, whose `<|start|>assistant` the prompt ends with, and those of the messages after it.

    Args:
        functions: names of those that may be called.
        required: whether one must be: then there is reasoning and calls, and neither an answer nor a word to the user.
    """
    names = tuple(functions)
    size = sum(map(len, names)) + 40 * len(names)
    return _kept.get((tokenizer, names, required), size, lambda: _trees(tokenizer, names, required))


def _trees(tokenizer: Tokenizer, functions: Iterable[str], required: bool) -> tuple[Tree, Tree]:
    first: Tree = {}
    for said in (Said("analysis"), *(() if required else (Said("commentary"), Said("final")))):
        _add(first, tokenizer.encode_with_control(f"<|channel|>{said.channel}<|message|>"), said)
    for name in functions:
        text = f"<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>"
        _add(first, tokenizer.encode_with_control(text), Said("commentary", name))
    later: Tree = first
    for token in reversed(tokenizer.encode_with_control("<|start|>assistant")):
        later = {token: later}
    return first, later


def _add(tree: Tree, tokens: Sequence[int], said: Said) -> None:
    for token in tokens[:-1]:
        tree = tree.setdefault(token, {})
    tree[tokens[-1]] = said
