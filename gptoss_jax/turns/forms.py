"""What a turn may be: which functions it may call, and whether it must, in the words of OpenAI's Chat Completions; and its constraint.

"none"       hides the tools               "auto"   the model chooses by itself, as where nothing is said
"required"   the turn must end with a call
{"type": "function", "function": {"name": "f"}}                                                      it must end with a call of f
{"type": "allowed_tools", "allowed_tools": {"mode": "auto" or "required", "tools": [{"type": "function", "function": {"name": "f"}}]}}
"""

from collections.abc import Mapping, Sequence
import dataclasses

from gptoss_jax.engine.requests import Constraint
from gptoss_jax.harmony import Continued
from gptoss_jax.quoting import quoted
from gptoss_jax.sampling.options import Sampling

_MODES = ("none", "auto", "required")
_NAMED = '{"type": "function", "function": {"name": "..."}}'
_ALLOWED = '{"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [' + _NAMED + "]}}"


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a turn may call.

    Attributes:
      mode: "none", "auto" or "required".
      names: of the functions that may be called, as they were listed; None for all.
    """

    mode: str = "auto"
    names: tuple[str, ...] | None = None

    def check_tools(self, tools: Sequence[Mapping] | None) -> None:
        """Raises a ValueError if what may be called is not among tools, which are valid ones."""
        if self.mode != "required" and self.names is None:
            return
        if not tools:
            raise ValueError("tool_choice must come with tools where it asks for calls; there are none; pass tools, or leave it out.")
        known = names_of(tools)
        if missing := [name for name in self.names or () if name not in known]:
            raise ValueError(
                f"tool_choice must name functions that are in tools; {quoted(missing[0], 70)} is not among them; "
                f"pass one of {quoted(', '.join(known), 120)}, or add it to tools."
            )


def names_of(tools: Sequence[Mapping]) -> list[str]:
    """The names of valid tools, without a namespace."""
    return [tool.get("function", tool)["name"].removeprefix("functions.") for tool in tools]


def read_choice(tool_choice: object) -> Choice:
    """A tool_choice in one of the forms above; None is "auto".

    Raises:
      ValueError: anything else.
    """
    if tool_choice is None:
        return Choice()
    if isinstance(tool_choice, str) and tool_choice in _MODES:
        return Choice(_MODES[_MODES.index(tool_choice)])
    if isinstance(tool_choice, Mapping):
        kind = tool_choice.get("type")
        if isinstance(kind, str) and kind == "function":
            return Choice("required", (_name(tool_choice, "tool_choice"),))
        if isinstance(kind, str) and kind == "allowed_tools":
            return _allowed(tool_choice)
    raise ValueError(
        f'tool_choice must be "none", "auto", "required", {_NAMED} or {_ALLOWED}; got {quoted(tool_choice, 60)}; pass one of them.'
    )


def _allowed(given: Mapping) -> Choice:
    inner = given.get("allowed_tools")
    if not isinstance(inner, Mapping) or set(given) != {"type", "allowed_tools"} or set(inner) != {"mode", "tools"}:
        raise ValueError(f"tool_choice must be {_ALLOWED}; got {quoted(given, 80)}; write it so.")
    mode, tools = inner["mode"], inner["tools"]
    if not isinstance(mode, str) or mode not in ("auto", "required"):
        raise ValueError(f'tool_choice.allowed_tools: mode must be "auto" or "required"; got {quoted(mode, 60)}; pass one of them.')
    if not isinstance(tools, list | tuple) or not tools:
        raise ValueError(
            f'tool_choice.allowed_tools: tools must be a list of at least one {_NAMED}; got {quoted(tools, 60)}; name some, or pass "none".'
        )
    names = tuple(_name(tool, f"tool_choice.allowed_tools.tools[{i}]") for i, tool in enumerate(tools))
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ValueError(f"tool_choice.allowed_tools: tools must name each function once; got {quoted(name, 70)} twice; drop one.")
        seen.add(name)
    return Choice(_MODES[_MODES.index(mode)], names)


def _name(tool: object, where: str) -> str:
    """The function that a tool of a choice names, without a namespace."""
    whole = isinstance(tool, Mapping) and set(tool) == {"type", "function"} and isinstance(tool["type"], str) and tool["type"] == "function"
    function = tool["function"] if whole else None
    name = function["name"] if isinstance(function, Mapping) and set(function) == {"name"} else None
    if not isinstance(name, str):
        raise ValueError(f"{where} must name one function as {_NAMED}; got {quoted(tool, 80)}; write it so.")
    return name.removeprefix("functions.")


def constraint(llm, task, sampling: Sampling, tools: Sequence[Mapping] | None, begun: Continued | None) -> Constraint | None:
    """What the tokens of one request must be like, if anything is asked of them.

    Args:
      task: a `Task` that was checked.
      tools: those that its prompt names.
      begun: what its prompt has begun of the turn.

    Raises:
      ValueError: what is asked for contradicts itself, or cannot be followed.
    """
    size, choice = llm.model.config.vocab_size, read_choice(task.tool_choice)
    chosen = choice.mode == "required" or choice.names is not None
    strict = [tool for tool in tools or () if tool.get("function", tool).get("strict")]
    if task.response_format is None and not strict and not chosen:
        return None
    from gptoss_jax import grammar

    if sampling.ignore_eos:
        what = "tool_choice" if chosen else "a form of the answer"
        raise ValueError(f"ignore_eos and {what} contradict each other: a turn ends when that is complete; leave ignore_eos out.")
    if task.prompt is not None:
        ends = tuple(llm.model.eos_token_ids) + sampling.stop_token_ids
        return grammar.for_text(llm.tokenizer, task.response_format, end_ids=ends, vocab_size=size)
    if choice.mode == "required" and begun is not None:
        raise ValueError(
            "tool_choice and continue_final_message contradict each other: a turn that must call is not begun with text; leave one out."
        )
    ruled = None if task.response_format is not None or choice.mode == "required" else names_of(strict)
    names = (choice.names or names_of(tools)) if chosen else None
    how = {"vocab_size": size, "continued": begun, "ruled": ruled, "names": names, "required": choice.mode == "required"}
    return grammar.for_chat(llm.tokenizer, task.response_format, tools, **how)
