"""A schema in the keywords that a grammar can follow: what it says in others is said in those, or refused by name.

What is written then satisfies the schema as it was; where the two are not the same, the new one is the narrower.
"""

from collections.abc import Mapping

from gptoss_jax.grammar.schema.disjoint import Prover
from gptoss_jax.quoting import quoted
from gptoss_jax.schemas.drafts import parts_of
from gptoss_jax.schemas.pointers import Path, children
from gptoss_jax.schemas.references import Reference, references, repoint

FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri")  # that bind; others say, no more
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_FOLLOWED = {
    *("type", "enum", "const", "$ref", "allOf", "anyOf", "oneOf", "format", "pattern", *_COUNTS),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"),
    *("items", "prefixItems", "properties", "patternProperties", "additionalProperties", "required"),
}
_PLACES = ("$defs", "definitions")
_BESIDE = ("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas")  # what else may look at a property or an item
_MOST_NARROWED = 100  # schemas of a oneOf, each compared with all others
_CASES = 'write the cases out in "anyOf"'
_REFUSED = {
    "not": "say what may be there instead, with enum, anyOf or additionalProperties",
    "if": _CASES,
    "contains": "say what every item is, with items or prefixItems",
    "uniqueItems": "drop it, and ask for it in the description",
    "propertyNames": "name the properties, or use patternProperties",
    "dependentRequired": _CASES,
    "dependentSchemas": _CASES,
    "unevaluatedProperties": "put additionalProperties into the schema that names all properties",
    "unevaluatedItems": "put items into the schema that names the first ones",
    "$dynamicRef": "refer to a schema in this one with $ref",
    "$recursiveRef": "refer to a schema in this one with $ref",
}


def followed(schema: dict, where: str) -> dict:
    """A schema as `checking.current` leaves it, in fewer keywords, without what binds nothing; changed in place.

    Args:
        schema: valid, of draft 2020-12, its references pointers.
        where: what the caller calls it, for the refusals.

    Raises:
        ValueError: it holds a keyword that no grammar here can follow; the sentence names it, its place, and what to write instead.
    """
    simplifier = _Simplifier(references(schema, list(parts_of(schema))), where)
    simplifier.take(schema)
    repoint(schema, simplifier.references())
    return schema


class _Simplifier:
    """Says schemas in fewer keywords, one by one from the root, those in $defs where they are referred to."""

    def __init__(self, found: list[Reference], where: str):
        self._found, self._where = found, where
        self._targets = {id(part): target for part, _, target in found}
        self._prover = Prover(self._targets)
        self._moved: dict[int, dict] = {}  # a schema whose reference now stands in another
        self._narrowed: dict[tuple, dict] = {}
        self._seen: dict[int, dict] = {}
        self._kept: list[object] = []  # so that no id is given twice

    def references(self) -> list[Reference]:
        """Those of what was said, as it stands now."""
        return [(self._moved.get(id(part), part), key, target) for part, key, target in self._found if id(part) in self._seen]

    def take(self, schema: dict) -> None:
        """Says a schema and what it refers to, and drops the definitions that nothing refers to: they may hold anything."""
        todo = [(Path(), schema)]
        while todo:
            here, part = todo.pop()
            if not isinstance(part, dict) or id(part) in self._seen:
                continue
            self._seen[id(part)] = part
            self._say(part, here)
            if "$ref" in part and id(part) not in self._targets:
                raise ValueError(
                    f"{self._where} must refer to schemas that it holds; got $ref {quoted(part['$ref'], 100)} at {here}, where there is "
                    "none; put that schema into $defs"
                )
            target = self._targets.get(id(part), True)
            todo.append((Path(part["$ref"]) if isinstance(part.get("$ref"), str) else here, target))
            inner = {key: value for key, value in part.items() if key not in _PLACES}
            todo += reversed(list(children(inner, here)))
        for part in self._seen.values():
            for key in _PLACES:
                if key in part:
                    part[key] = {name: inner for name, inner in part[key].items() if id(inner) in self._seen}

    def _say(self, part: dict, here: Path) -> None:
        """Says one schema, itself and not what stands in it."""
        for key, beside in (("then", "if"), ("else", "if"), ("minContains", "contains"), ("maxContains", "contains")):
            if beside not in part:
                part.pop(key, None)
        if "then" not in part and "else" not in part:
            part.pop("if", None)
        for key in _COUNTS:
            if isinstance(part.get(key), float):
                part[key] = int(part[key])
        if part.get("uniqueItems") is False or part.get("maxItems", 2) < 2:
            part.pop("uniqueItems", None)
        if part.get("not") is False:
            del part["not"]
        required = set(part.get("required", ()))
        if part.get("minProperties", 0) <= len(required):
            part.pop("minProperties", None)
        if part.get("additionalProperties") is False and not part.get("patternProperties"):
            if part.get("maxProperties", 0) >= len(required | part.get("properties", {}).keys()):
                part.pop("maxProperties", None)
        if part.get("format") not in FORMATS:
            part.pop("format", None)
        _say_unevaluated(part)
        _say_property_names(part)
        _say_dependent(part)
        for key, instead in _REFUSED.items():
            if key in part:
                raise ValueError(f"{self._where} must hold what a grammar can follow; got {key} at {here}; {instead}")
        if "oneOf" in part:
            self._say_one_of(part, here)
        nullable = part.get("nullable") is True
        for key in part.keys() - _FOLLOWED - set(_PLACES):
            del part[key]
        if nullable:
            self._say_nullable(part)

    def _say_one_of(self, part: dict, here: Path) -> None:
        """As anyOf, if no value satisfies two of the schemas, or of narrower ones."""
        schemas = part["oneOf"]
        shared = {key: value for key, value in part.items() if key not in ("oneOf", "nullable")}
        if "$ref" in part:
            self._targets[id(shared)] = self._targets.get(id(part), True)
        self._kept.append(shared)
        overlap = self._prover.overlap(shared, schemas)
        tag = part["discriminator"].get("propertyName") if isinstance(part.get("discriminator"), Mapping) else None
        tagged = self._narrower(schemas, tag) if isinstance(tag, str) else None
        if tagged and not self._prover.overlap(shared, tagged):
            schemas = tagged
        elif overlap:
            schemas = self._narrower(schemas, None)
            if not schemas or self._prover.overlap(shared, schemas):
                raise ValueError(
                    f"{self._where} must hold in oneOf schemas of which a value satisfies one at most; got {overlap[0]} and {overlap[1]} "
                    f"at {here}.oneOf, which may both hold; use anyOf, or require in each a property with a const of its own"
                )
        if "anyOf" in part:
            del part["oneOf"]
            part["allOf"] = [*part.get("allOf", ()), {"anyOf": [*schemas]}]
            return
        said = {**part, "oneOf": [*schemas]}
        part.clear()  # and filled again, for properties are written in the order of keywords
        part.update({("anyOf" if key == "oneOf" else key): value for key, value in said.items()})

    def _narrower(self, schemas: list, tag: str | None) -> list | None:
        """References to the schemas of a oneOf, each requiring the tag, or without a property that another alone requires.

        None if a schema is no object, or does not have the tag. Those that all require it stay as they are.
        """
        targets = [self._target(schema) for schema in schemas]
        if None in targets or (tag is not None and not all(tag in target.get("properties", ()) for target in targets)):
            return None
        needs = [set(target.get("required", ())) for target in targets]
        if tag is not None and all(tag in own for own in needs):
            return schemas
        if tag is None and len(schemas) > _MOST_NARROWED:
            return None
        found = []
        for schema, target, own in zip(schemas, targets, needs, strict=True):
            never = [] if tag is not None else sorted({min(other - own) for other in needs if other - own})
            more = [] if tag is None else [tag]
            key = id(target), *more, "", *never
            if key not in self._narrowed:
                self._narrowed[key] = {name: value for name, value in target.items() if name not in _PLACES}
                self._narrowed[key]["required"] = [*dict.fromkeys([*target.get("required", ()), *more])]
                self._narrowed[key]["properties"] = target.get("properties", {}) | dict.fromkeys(never, False)
            reference = {"$ref": schema.get("$ref", "#")}
            self._kept.append(reference)
            self._targets[id(reference)] = self._narrowed[key]
            self._found.append((reference, "$ref", self._narrowed[key]))
            found.append(reference)
        return found

    def _target(self, schema: object) -> dict | None:
        """What a schema is that may be a reference and nothing else; None if it is one and more, no object, or leads back to itself."""
        passed = set()
        while (
            isinstance(schema, dict) and "$ref" in schema and schema.keys() <= {"$ref", "title", "description"} and id(schema) not in passed
        ):
            passed.add(id(schema))
            schema = self._targets.get(id(schema), True)
        return schema if isinstance(schema, dict) and "$ref" not in schema else None

    def _say_nullable(self, part: dict) -> None:
        """OpenAPI's word: null, or what the rest says."""
        if part.keys().isdisjoint(("enum", "const", "$ref", "allOf", "anyOf", "oneOf")):
            if "type" in part:
                types = [part["type"]] if isinstance(part["type"], str) else part["type"]
                part["type"] = [*dict.fromkeys([*types, "null"])]
            return
        inner = {key: value for key, value in part.items() if key not in _PLACES}
        self._kept.append(inner)
        if id(part) in self._targets:
            self._targets[id(inner)] = self._targets.pop(id(part))
            self._moved[id(part)] = inner
        for key in inner:
            del part[key]
        part["anyOf"] = [inner, {"type": "null"}]


def _say_unevaluated(part: dict) -> None:
    """As additionalProperties and items, where nothing else in the schema looks at properties and items."""
    alone = part.keys().isdisjoint(_BESIDE)
    for key, rest in (("unevaluatedProperties", "additionalProperties"), ("unevaluatedItems", "items")):
        if key in part and (part[key] in (True, {}) or rest in part):
            del part[key]
        elif key in part and alone and not (rest == "items" and "contains" in part):
            part[rest] = part.pop(key)


def _say_property_names(part: dict) -> None:
    """As properties, where the names are given; not at all where any will do."""
    names = part.get("propertyNames")
    if not isinstance(names, Mapping):
        if names is True:
            del part["propertyNames"]
        return
    said = {key: value for key, value in names.items() if key in _FOLLOWED or key in _REFUSED}
    if "string" in (said.get("type", ()) if isinstance(said.get("type"), list) else [said.get("type")]):
        del said["type"]
    if not said:
        del part["propertyNames"]
    elif "patternProperties" in part:
        return
    elif said.keys() <= {"enum", "const"} and len(said) == 1:
        known, rest = part.get("properties", {}), part.get("additionalProperties", True)
        allowed = [name for name in said.get("enum", [said.get("const")]) if isinstance(name, str)]
        part["properties"] = {name: inner if name in allowed else False for name, inner in known.items()}
        part["properties"] |= {name: rest for name in allowed if name not in known}
        part["additionalProperties"] = False
        del part["propertyNames"]
    elif said.keys() == {"pattern"} and "properties" not in part:
        part["patternProperties"] = {said["pattern"]: part.get("additionalProperties", True)}
        part["additionalProperties"] = False
        del part["propertyNames"]


def _say_dependent(part: dict) -> None:
    """Where a value is an object in any case: either without the property, or with what it asks for."""
    for key in ("dependentRequired", "dependentSchemas"):
        if part.get(key) == {}:
            del part[key]
        elif key in part and part.get("type") in ("object", ["object"]):
            for name, asks in part.pop(key).items():
                asked = {"required": [*dict.fromkeys([name, *asks])]} if isinstance(asks, list) else {"required": [name], "allOf": [asks]}
                without = {"type": "object", "properties": {name: False}}
                part["allOf"] = [*part.get("allOf", ()), {"anyOf": [without, {"type": "object", **asked}]}]
