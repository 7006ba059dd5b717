"""Harmony text of nano's training conversations: what `openai_harmony` renders, as plain string templates.

Training makes millions of prompts, so they are formatted here rather than rendered; tests compare every template with
`openai_harmony` itself.  Texts contain control symbols such as `<|start|>` spelled out; `nano_tokenizer` turns them into ids.
"""

from collections.abc import Sequence
from typing import Any

EFFORTS = ("low", "medium", "high")
START, END, MESSAGE, CHANNEL = "<|start|>", "<|end|>", "<|message|>", "<|channel|>"
IDENTITY = "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06"
CHANNELS = "\n\n# Valid channels: analysis, commentary, final. Channel must be included for every message."
TOOL_CHANNEL = "\nCalls to these tools must go to the commentary channel: 'functions'."


def system(effort: str, date: str | None, tools: bool) -> str:
    """The system message; the line on tool channels is there when the developer message defines functions."""
    today = f"\nCurrent date: {date}" if date else ""
    return f"{START}system{MESSAGE}{IDENTITY}{today}\n\nReasoning: {effort}{CHANNELS}{TOOL_CHANNEL if tools else ''}{END}"


def developer(instructions: str | None, tools: Sequence[dict[str, Any]]) -> str:
    """The developer message with instructions, function definitions, or both; empty when there is neither."""
    parts = [f"# Instructions\n\n{instructions}"] if instructions else []
    if tools:
        parts.append("# Tools\n\n## functions\n\nnamespace functions {\n\n" + "".join(map(_definition, tools)) + "} // namespace functions")
    return f"{START}developer{MESSAGE}" + "\n\n".join(parts) + END if parts else ""


def _definition(tool: dict[str, Any]) -> str:
    """One function as TypeScript; only string properties, all required, occur in training."""
    lines = []
    for name, schema in tool["parameters"]["properties"].items():
        note = f"// {schema['description']}\n" if "description" in schema else ""
        lines.append(f"{note}{name}: string,\n")
    return f"// {tool['description']}\ntype {tool['name']} = (_: {{\n{''.join(lines)}}}) => any;\n\n"


def function(name: str, description: str, parameter: str, parameter_description: str | None = None) -> dict[str, Any]:
    """A function definition with one required string parameter, in OpenAI's inner form."""
    schema = {"type": "string"} | ({"description": parameter_description} if parameter_description else {})
    parameters = {"type": "object", "properties": {parameter: schema}, "required": [parameter]}
    return {"name": name, "description": description, "parameters": parameters}


def user(text: str) -> str:
    """A user message."""
    return f"{START}user{MESSAGE}{text}{END}"


def past_answer(text: str) -> str:
    """An answer of an earlier turn: its analysis is not rendered again."""
    return f"{START}assistant{CHANNEL}final{MESSAGE}{text}{END}"


def analysis(text: str) -> str:
    """The analysis message of a completion, or of a turn whose tool call awaits its result (after `<|start|>assistant`)."""
    return f"{CHANNEL}analysis{MESSAGE}{text}{END}"


def call(name: str, arguments: str) -> str:
    """The tool call of a completion, up to its stop token `<|call|>` (after `<|start|>assistant`)."""
    return f"{CHANNEL}commentary to=functions.{name} <|constrain|>json{MESSAGE}{arguments}<|call|>"


def tool_result(name: str, text: str) -> str:
    """What a function returned."""
    return f"{START}functions.{name}{CHANNEL}commentary to=assistant{MESSAGE}{text}{END}"


def answer(text: str) -> str:
    """The final message of a completion, up to its stop token `<|return|>` (after `<|start|>assistant`)."""
    return f"{CHANNEL}final{MESSAGE}{text}<|return|>"


ASSISTANT = f"{START}assistant"
