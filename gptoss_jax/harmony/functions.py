"""The functions that a model may call, checked at the door: what the prompt shows of them is what a grammar holds the model to."""

from collections import Counter
from collections.abc import Mapping, Sequence
import json

import openai_harmony as oh

from gptoss_jax.harmony.declarations import declaration
from gptoss_jax.harmony.texts import function_name, no_arrays, only, shown, text_of
from gptoss_jax.schemas.checking import as_text, checked
from gptoss_jax.schemas.merging import UNIONS, merged, types, values
from gptoss_jax.schemas.targets import Targets

_READ = ("name", "description", "parameters", "strict", "return")
_INSTEAD = {
    **dict.fromkeys(("inputSchema", "input_schema", "args_schema", "schema", "json_schema"), "that is called parameters here"),
    **dict.fromkeys(("outputSchema", "output_schema", "returns"), "the model is shown no results: say it in the description"),
}


class Function(oh.ToolDescription):
    """A function: its name, its description, its parameters, None if it takes none, and how it is shown.

    Attributes:
        parameters: a valid JSON schema of an object in the words of draft 2020-12, plain data.
        declaration: in TypeScript, see `declarations`; openai_harmony does not know of it.
    """

    declaration: str


def read_functions(tools: Sequence[Mapping] | None) -> list[Function]:
    """The functions in OpenAI's form, {"type": "function", "function": {"name", "description", "parameters"}} or the inner dict alone.

    A "return" beside them, which transformers writes, is told in the description.

    Raises:
        ValueError: anything else; the sentence says where and what to do.
    """
    if tools is not None and not isinstance(tools, list | tuple):
        raise ValueError(f"tools must be a list of function definitions; got {type(tools).__name__}; put brackets around it")
    functions = [_function(tool, f"tools[{i}]") for i, tool in enumerate(tools or ())]
    names = [function.name for function in functions]
    if twice := sorted(name for name, times in Counter(names).items() if times > 1):
        raise ValueError(f"tools must have different names; {', '.join(twice[:3])} is there more than once")
    return functions


def declarations(conversation: oh.Conversation) -> dict[str, str]:
    """What is to stand for each function of a conversation, by its name."""
    contents = [content for message in conversation.messages for content in message.content if isinstance(content, oh.DeveloperContent)]
    spaces = [space for content in contents for space in (content.tools or {}).values()]
    return {tool.name: tool.declaration for space in spaces for tool in space.tools if isinstance(tool, Function)}


def _function(tool: Mapping, where: str) -> Function:
    no_arrays(tool, where)
    if isinstance(tool, Mapping) and tool.get("type", "function") != "function":
        raise ValueError(f"{where}: only tools of type 'function' can be called; got {shown(tool['type'])}")
    function = tool.get("function", tool) if isinstance(tool, Mapping) else None
    if not isinstance(function, Mapping):
        raise ValueError(f'{where} must be {{"name", "description", "parameters"}}, alone or as a "function"; got {shown(tool)}')
    if function is not tool:
        only(tool, ("type", "function"), where, dict.fromkeys(_READ, "it belongs into function"))
    only(function, _READ if function is not tool else ("type", *_READ), where, _INSTEAD)
    if not isinstance(function.get("strict"), bool | None):
        raise ValueError(f"{where}: strict must be true or false; got {shown(function['strict'])}")
    name = function_name(function.get("name"), where)
    description, parameters = function.get("description"), function.get("parameters")
    description = "" if description is None else text_of(description, f"{where}: description")
    description = "\n".join(filter(None, (description, _returned(function.get("return"), f"{where}: return"))))
    where = f"{where}: parameters"
    parameters = None if parameters is None else _schema(parameters, where)
    words = declaration(name, description, parameters, where)
    return Function(name=name, description=description, parameters=parameters, declaration=words)


def _returned(given: object, where: str) -> str:
    """What is said of a result as transformers' `get_json_schema` writes it, {"type", "description"}, as a line for the description."""
    if given is None:
        return ""
    if not isinstance(given, Mapping):
        raise ValueError(f'{where} must be {{"type", "description"}}; got {shown(given)}; say it in the description')
    only(given, ("type", "description"), where, {})
    said = [text_of(given[key], f"{where}: {key}") for key in ("type", "description") if given.get(key)]
    return f"Returns {': '.join(said)}" if said else ""


def _schema(parameters: Mapping, where: str) -> dict:
    """parameters as plain JSON data, a valid schema of an object in the words of draft 2020-12."""
    if not isinstance(parameters, Mapping):
        raise ValueError(f'{where} must be a JSON schema such as {{"type": "object", "properties": ...}}; got {shown(parameters)}')
    return _of_object(checked(json.loads(text_of(as_text(parameters, where), where)), where), where)


def _of_object(schema: dict, where: str) -> dict:
    """A schema that says that it is of an object; raises a ValueError if it is of something else."""
    targets = Targets(schema, where)
    if other := _another_type(schema, targets, ()):
        raise ValueError(f"{where} must describe an object; got {other}; make the value a property of one")
    if merged(schema, targets).keywords.get("type") != "object":
        schema["type"] = "object"
    return schema


def _another_type(schema: object, targets: Targets, above: tuple[Mapping, ...]) -> str:
    """What a schema, or one of its variants, describes instead of an object; "" if it describes one, or anything."""
    chain = targets.chain(schema)
    if any(target is other for target in chain for other in above):
        return ""
    targets.look(len(above))
    found = merged(schema, targets)
    if found.never:
        return "false, which accepts nothing"
    if (kinds := types(found.keywords)) is not None:
        return "" if kinds == ["object"] else f'"type": {shown(found.keywords["type"])}'
    if other := [value for value in values(found.keywords) if not isinstance(value, dict)]:
        return f"the value {shown(other[0])}"
    variants = [*found.more, *(part for key in UNIONS for part in found.keywords.get(key, ()))]
    return next((other for part in variants if (other := _another_type(part, targets, (*above, *chain)))), "")
