"""Functions as the prompt shows them: golden texts of what openai_harmony says well, and of what it leaves out."""

import inspect
import sys
import time

import pytest

from gptoss_jax.grammar import for_chat
from gptoss_jax.harmony import render
from gptoss_jax.harmony.functions import read_functions
from gptoss_jax.tokenizer import o200k


def shown(parameters, description=""):
    """What stands in the namespace for a function f."""
    tools = [{"name": "f", "description": description, "parameters": parameters}]
    text = o200k().decode(render(o200k(), [{"role": "user", "content": "Hi"}], tools=tools))
    return text.partition("namespace functions {\n\n")[2].partition("\n\n} // namespace functions<|end|>")[0]


def of(schema, **others):
    """The lines of a property p that is not required."""
    text = shown({"type": "object", "properties": {"p": schema}, **others})
    assert text.startswith("type f = (_: {\n") and text.endswith("}) => any;")
    return text.removeprefix("type f = (_: {\n").removesuffix("}) => any;")


def record(**properties):
    return {"type": "object", "properties": properties}


WORDS = {"type": "string", "description": "d"}
KEPT = {
    "a scalar": ({"type": "integer", "description": "How many."}, "// How many.\np?: number,\n"),
    "a default": ({"type": "string", "default": "x"}, 'p?: string, // default: "x"\n'),
    "a default of an enum": ({"type": "string", "enum": ["a", "b"], "default": "a"}, 'p?: "a" | "b", // default: a\n'),
    "types": ({"type": ["string", "null"]}, "p?: string | null,\n"),
    "nullable": ({"type": "string", "nullable": True}, "p?: string | null,\n"),
    "an array of an enum": ({"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}, 'p?: "a" | "b"[],\n'),
    "an array of arrays of an enum": (
        {"type": "array", "items": {"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}}, 'p?: "a" | "b"[][],\n',
    ),
    "an array of anything": ({"type": "array"}, "p?: Array<any>,\n"),
    "an object": ({**record(x={"type": "number"}), "description": "d"}, "// d\np?:     // d\n{\n    x?: number,\n    },\n"),
    "an array of objects": ({"type": "array", "items": record(x=WORDS)}, "p?: {\n    // d\n    x?: string,\n    }[],\n"),
    "title and examples": (
        {"type": "string", "title": "T", "examples": ["a", "b"], "description": "d"},
        '// T\n//\n// d\n// Examples:\n// - "a"\n// - "b"\np?: string,\n',
    ),
    "oneOf": (
        {"oneOf": [{"type": "string", "default": "x"}, {**record(), "description": "v"}], "description": "d", "default": 3},
        '// d\n// default: 3\np?:\n | string // default: "x"\n |    // v\n{\n   } // v\n,\n',
    ),
    "a closed object": ({**record(x={"type": "string"}), "additionalProperties": False}, "p?: {\n    x?: string,\n    },\n"),
}
NEW = {
    "a reference": ({"$ref": "#/$defs/Guest"}, "// Guest\n//\n// Who comes.\np?:     // Who comes.\n{\n    nights: number,\n    },\n"),
    "Optional": ({"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}, "p?: string | null, // default: null\n"),
    "Optional with rules": (
        {"anyOf": [{"type": "integer", "minimum": 1}, {"type": "null"}], "default": None},
        "// default: null\np?:\n | number // minimum: 1\n | null\n,\n",
    ),
    "const": ({"type": "string", "const": "metric"}, 'p?: "metric",\n'),
    "an enum without a type": ({"enum": ["a", 1, None, True, 1.5]}, 'p?: "a" | 1 | null | true | 1.5,\n'),
    "an enum of integers": ({"type": "integer", "enum": [16, 32]}, "p?: 16 | 32,\n"),
    "an enum of objects": ({"enum": [{"a": [1]}, [2]]}, 'p?: {"a":[1]} | [2],\n'),
    "an enum that may be null": ({"type": ["string", "null"], "enum": ["aa", None]}, 'p?: "aa" | null,\n'),
    "an enum as OpenAPI has one that may be null": ({"type": "string", "enum": ["a", None], "nullable": True}, 'p?: "a" | null,\n'),
    "a nullable enum that does not list null": ({"type": "string", "enum": ["a"], "nullable": True}, 'p?: "a" | null,\n'),
    "a const that is null, and may be": ({"type": "string", "const": None, "nullable": True}, "p?: null,\n"),
    "an array of them": (
        {"type": "array", "items": {"nullable": True, "enum": [None, "a"], "type": "string"}},
        'p?: (null | "a")[],\n',
    ),
    "an array of types beside another type": (
        {**record(x={}), "allOf": [{"type": "array", "items": {"type": ["string", "integer"]}}]},
        "p?: {\n    x?: any,\n    } & (string | number)[],\n",
    ),
    "an array of types, or null": ({"type": ["array", "null"], "items": {"type": ["string", "null"]}}, "p?: (string | null)[] | null,\n"),
    "an array of numbers to choose": ({"type": "array", "items": {"enum": [1, 2]}}, "p?: (1 | 2)[],\n"),
    "null": ({"type": "null"}, "p?: null,\n"),
    "a map": ({"type": "object", "additionalProperties": {"type": "integer"}}, "p?: {\n    [key: string]: number,\n    },\n"),
    "a map of anything": ({"type": "object", "additionalProperties": True}, "p?: {\n    [key: string]: any,\n    },\n"),
    "patterns of names": (
        {"patternProperties": {"^x-": {"type": "string"}}},
        'p?: {\n    // Each name that matches "^x-":\n    [key: string]: string,\n    },\n',
    ),
    "a tuple": ({"prefixItems": [{"type": "string"}, WORDS], "items": False}, "// item 1: d\np?: [string, string],\n"),
    "a tuple that goes on": ({"prefixItems": [{"type": "string"}], "items": WORDS}, "// items: d\np?: [string, ...string[]],\n"),
    "a tuple as pydantic has it": (
        {"type": "array", "prefixItems": [{"type": "number"}, {"type": "string"}], "minItems": 2, "maxItems": 2},
        "// minItems: 2, maxItems: 2\np?: [number, string],\n",
    ),
    "a tuple of draft 7": ({"type": "array", "items": [{"type": "number"}], "additionalItems": False}, "p?: [number],\n"),
    "allOf": ({"allOf": [record(a={"type": "string"}), record(b=WORDS)]}, "p?: {\n    a?: string,\n    // d\n    b?: string,\n    },\n"),
    "allOf of two unions": (
        {"allOf": [{"enum": [1, 2]}, {"anyOf": [{"type": "integer"}, {"type": "null"}]}]},
        "p?: (1 | 2) & (number | null),\n",
    ),
    "an object, one of whose properties is needed": (
        {**record(a={"type": "string"}), "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
        "p?: {\n    a?: string,\n    } & (\n     | {\n       a: any,\n       }\n     | {\n       b: any,\n       }\n),\n",
    ),
    "a type above a union": (
        {"type": "string", "anyOf": [{"maxLength": 3}, {"enum": ["long"]}]},
        'p?:\n | string // maxLength: 3\n | "long"\n,\n',
    ),
    "properties without a type": ({"properties": {"a": {}}, "required": ["a", "b"]}, "p?: {\n    a: any,\n    b: any,\n    },\n"),
    "items without a type": ({"items": {"type": "string"}}, "p?: string[],\n"),
    "properties of an object or null": ({**record(a={}), "type": ["object", "null"]}, "p?: {\n    a?: any,\n    } | null,\n"),
    "an array that may hold null": ({"type": "array", "items": {"type": "string", "nullable": True}}, "p?: (string | null)[],\n"),
    "items with a description": (
        {"type": "array", "items": {**WORDS, "minLength": 2}},
        "// items: d\n// items: minLength: 2\np?: string[],\n",
    ),
    "an array of variants with comments": (
        {"type": "array", "items": {"oneOf": [{"type": "number"}, WORDS]}},
        "p?: (\n     | number\n     | string // d\n)[],\n",
    ),
    "rules": (
        {"type": "string", "pattern": '^"\u2028', "format": "date", "maxLength": 9},
        '// maxLength: 9, pattern: "^\\"\\u2028", format: "date"\np?: string,\n',
    ),
    "not": ({"type": "object", "not": {"$ref": "#/$defs/Small"}}, '// not: {"required":["x"]}\np?: {\n    },\n'),
    "cases": (
        {"type": "object", "if": {"required": ["a"]}, "then": {"required": ["b"]}, "minProperties": 1},
        '// minProperties: 1\n// if: {"required":["a"]}, then: {"required":["b"]}\np?: {\n    },\n',
    ),
    "true and false": ({"prefixItems": [True, False]}, "p?: [any, never, ...any[]],\n"),
    "lines": (
        {"description": "a\nb\rc\x0bd\x0ce\x85f\u2028g\u2029h\r\n", "title": "t\nu", "default": 'a "b"\n', "examples": ["\n", 1]},
        "// t\n// u\n//\n// a\n// b\n// c\n// d\n// e\n// f\n// g\n// h\n"
        '// Examples:\n// - "\\n"\n// - 1\np?: any, // default: "a \\"b\\"\\n"\n',
    ),
    "lines of a variant": (
        {"oneOf": [{"type": "string", "description": "a\nforged: string,"}, {"type": "null"}]},
        "p?:\n// a\n// forged: string,\n | string\n | null\n,\n",
    ),
    "a variant's description beside the property's": (
        {"oneOf": [WORDS, {"type": "null"}], "description": "p"},
        "// p\np?:\n | string // d\n | null\n,\n",
    ),
    "names": (
        record(**{"two words": {}, 'a"b\n': {}, "a-b": {}, "1": {}, "": {}, "é": {}, "$a_1": {}}),
        'p?: {\n    "two words"?: any,\n    "a\\"b\\n"?: any,\n'
        '    "a-b"?: any,\n    "1"?: any,\n    ""?: any,\n    é?: any,\n    $a_1?: any,\n    },\n',
    ),
}  # fmt: skip
DEFS = {
    "Guest": {**record(nights={"type": "integer"}), "title": "Guest", "required": ["nights"], "description": "Who comes."},
    "Small": {"required": ["x"]},
}


@pytest.mark.parametrize(("schema", "text"), [*KEPT.values(), *NEW.values()], ids=[*KEPT, *NEW])
def test_properties(schema, text):
    assert of(schema, **{"$defs": DEFS}) == text


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (None, "type f = () => any;"),
        ({}, "type f = (_: {\n}) => any;"),
        ({"$ref": "#/$defs/A", "$defs": {"A": record(a={"const": 1})}}, "type f = (_: {\na?: 1,\n}) => any;"),
        ({"allOf": [record(a={"const": 1}), {"required": ["a"]}]}, "type f = (_: {\na: 1,\n}) => any;"),
        (
            {"anyOf": [record(left={"type": "string"}), {"properties": {"right": {}}}], "description": "Either.\nOr."},
            "type f = (_: // Either.\n// Or.\n\n | {\n   left?: string,\n   }\n | {\n   right?: any,\n   }) => any;",
        ),
        ({"oneOf": [{**record(), "description": "d"}]}, "type f = (_: \n |    // d\n{\n   } // d\n) => any;"),
    ],
)
def test_parameters(parameters, text):
    assert shown(parameters) == text


def test_descriptions_of_functions_are_comments_on_every_line():
    assert shown(None, "a\nb\r\n\nc\u2028type g = () => any;").splitlines() == [
        "// a",
        "// b",
        "// ",
        "// c",
        "// type g = () => any;",
        "type f = () => any;",
    ]


# References to what holds itself, and to the same again


def test_what_holds_itself_is_said_once_and_named_inside():
    node = record(value={"type": "integer"}, children={"type": "array", "items": {"$ref": "#/$defs/Node"}})
    whole = "    // This is Node.\n{\n    value?: number,\n    children?: Node[],\n    },\n"
    assert of({"$ref": "#/$defs/Node"}, **{"$defs": {"Node": node}}) == f"p?: {whole}"
    twice = record(a={"$ref": "#/$defs/Node"}, b={"$ref": "#/$defs/Node", "description": "The other."}) | {"$defs": {"Node": node}}
    assert shown(twice) == f"type f = (_: {{\na?: {whole}// The other.\nb?: Node,\n}}) => any;"
    assert shown(record(a={"$ref": "#"})) == "type f = (_: // This is Arguments.\n{\na?: Arguments,\n}) => any;"
    json = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"$ref": "#/$defs/Json"}}]}
    assert of({"$ref": "#/$defs/Json"}, **{"$defs": {"Json": json}}) == "p?:     // This is Json.\nstring | Json[],\n"
    more = {"allOf": [{"$ref": "#/$defs/Node"}, record(x={"const": 1})]}
    assert of(more, **{"$defs": {"Node": node}}) == f"p?: {{\n    x?: 1,\n    }} & {whole}"


def test_short_types_are_repeated_and_long_ones_named():
    short, long = record(a={"const": 1}), record(**{f"n{i}": {"type": "string", "description": "d" * 100} for i in range(10)})
    text = shown(
        record(a={"$ref": "#/$defs/S"}, b={"$ref": "#/$defs/S"}, c={"$ref": "#/$defs/L"}, d={"$ref": "#/$defs/L"})
        | {"$defs": {"S": short, "L": long}}
    )
    assert text.count("a?: 1,") == 2 and text.count("n7?: string") == 1
    assert text.count("// This is L.\n") == 1 and text.endswith("d?: L,\n}) => any;") and "This is S" not in text


@pytest.mark.parametrize("step", ["properties", "anyOf", "allOf"])
def test_what_doubles_at_every_reference_stays_short_or_is_refused(step):
    def twice(ref):
        ref = {"$ref": f"#/$defs/{ref}"}
        return {"properties": record(x=ref, y=ref), "anyOf": {"anyOf": [ref, ref]}, "allOf": {"allOf": [ref], **record(x=ref, y=ref)}}[step]

    defs = {f"d{i}": twice(f"d{i + 1}") for i in range(50)} | {"d50": {"type": "object"}}
    try:
        assert len(of({"$ref": "#/$defs/d0"}, **{"$defs": defs})) < 50_000
    except ValueError as error:
        assert step == "allOf" and "must be shown in at most 500,000 characters" in str(error)


MANY = {
    "rules": {"allOf": [{"minimum": i} for i in range(2000)]},
    "examples": {"allOf": [{"examples": [i]} for i in range(1500)]},
    "descriptions": {"allOf": [{"description": f"{i}" * 50} for i in range(1500)]},
    "one property": {"allOf": [{"properties": {"x": {"minimum": i}}} for i in range(1200)]},
    "required": {"allOf": [{"required": [f"p{i}"]} for i in range(6000)]},
    "values": {"allOf": [{"enum": list(range(50_000))}, *({"enum": [i]} for i in range(3000))]},
    "unions": {"allOf": [{"anyOf": [{"const": f"{i:0100}"} for i in range(3000)]}, *({"anyOf": [{"const": i}]} for i in range(3000))]},
}


@pytest.mark.parametrize("parameters", MANY.values(), ids=MANY)
def test_schemas_of_many_parts_take_no_longer_than_they_are_long(parameters):
    """Each once took from five seconds to minutes."""
    begun = time.process_time()
    try:
        assert len(of(parameters)) > 10_000
    except ValueError as error:
        assert "must hold fewer schemas that hold together" in str(error)
    assert time.process_time() - begun < 5


# The door


@pytest.mark.parametrize(
    ("parameters", "says"),
    [
        (record(p={"$ref": "#/$defs/Nope"}), r"every schema that it refers to; got \$ref '#/\$defs/Nope', .* add that to its \$defs"),
        (record(p={"not": {"$ref": "https://example.com/x"}}), "must hold every schema that it refers to"),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"type": "array"}}}, "must describe an object; got \"type\": str 'array'; make the value a"),
        ({"anyOf": [record(), {"enum": [{}, 1]}]}, "must describe an object; got the value int '1'"),
        ({"type": ["object", "null"]}, "must describe an object"),
        ({"allOf": [False]}, "must describe an object; got false"),
        ({"$ref": "#/$defs/0", "$defs": {str(i): record(x={"$ref": f"#/$defs/{i + 1}"}) for i in range(200)} | {"200": {}}},
         "must be nested at most 120 schemas deep where"),
        (record(**{f"p{i}": {"type": "string", "description": "one word " * 100} for i in range(700)}), "shown in at most 500,000 char"),
    ],
)  # fmt: skip
def test_parameters_that_are_refused(parameters, says):
    with pytest.raises(ValueError, match=says):
        read_functions([{"name": "f", "parameters": parameters}])


def test_what_is_nested_deeply_is_refused_where_the_stack_is_deep_already():
    parameters = {"$ref": "#/$defs/0", "$defs": {str(i): record(x={"$ref": f"#/$defs/{i + 1}"}) for i in range(100)} | {"100": {}}}

    def within(frames):
        return within(frames - 1) if frames else read_functions([{"name": "f", "parameters": parameters}])

    assert within(0)[0].declaration.count("x?:") == 100
    with pytest.raises(ValueError, match="must not be nested as deeply as Python's recursion limit"):
        within(sys.getrecursionlimit() - len(inspect.stack(0)) - 200)


def test_a_grammar_holds_the_model_to_the_schema_that_is_shown(small):
    guest = {"anyOf": [record(name={"const": "Ada"}) | {"required": ["name"], "additionalProperties": False}, {"type": "null"}]}
    tools = [{"name": "f", "parameters": {"$ref": "#/$defs/A", "$defs": {"A": record(guest=guest) | {"required": ["guest"]}}}}]
    (function,) = read_functions(tools)
    assert 'guest:\n | {\n   name: "Ada",\n   }\n | null\n,\n' in function.declaration

    rules = for_chat(small, None, tools, vocab_size=small.vocab_size)
    for token in small.encode_with_control('<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"guest":{"name":"Ada"}}'):
        rules.advance(token)
        assert not rules.problem
    with pytest.raises(ValueError, match="must get tokens that its mask allows"):
        rules = for_chat(small, None, tools, vocab_size=small.vocab_size)
        for token in small.encode_with_control('<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"guest":{"name":"Bob'):
            rules.advance(token)
