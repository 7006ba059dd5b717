"""A function that the model may call as it is shown to it: a declaration in TypeScript, made of the schema of its parameters.

    // Books a room.
    type book = (_: {
    // Who comes.
    guest: {
        nights: number,
        },
    }) => any;

Byte for byte what openai_harmony writes, which the model learnt from, wherever that says what the schema says. What it leaves out is said
here: as a type where TypeScript has one, in a comment above where it has none. A long schema that several references name, or one that
holds itself, is said once, with its name in a comment, and named from there on. Knows text only.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses

from gptoss_jax.harmony.typescript import Type, comment, default, literal, property_name
from gptoss_jax.schemas.merging import ARRAY, OBJECT, UNIONS, VALUES, Merged, annotations, inlined, is_of, merged, types, values
from gptoss_jax.schemas.targets import Targets

_CHARACTERS = 500_000  # of a declaration
_REPEATED, _REPEATED_LOOKS = 600, 100  # characters of a type that is said again wherever it is referred to; looks at schemas for it
_WORDS = {"integer": "number"}
_SAY_NOTHING = {"uniqueItems": False, "deprecated": False, "readOnly": False, "writeOnly": False, "unevaluatedItems": True}


def declaration(name: str, description: str, parameters: Mapping | None, where: str) -> str:
    """The lines that declare a function, the last without its end.

    Args:
        name: a function's name, see `functions`.
        description: of as many lines as there are.
        parameters: a valid JSON schema in 2020-12 form, plain JSON data of which no part is shared; None if it takes none.
        where: what the caller calls the parameters, for the refusals.

    Raises:
        ValueError: a reference names nothing in the schema, or it is too large to be shown.
    """
    above = comment(description) if description else ""
    if parameters is None:
        return f"{above}type {name} = () => any;"
    try:
        said = _Writer(parameters, where).arguments()
    except RecursionError as error:
        raise ValueError(f"{where} must not be nested as deeply as Python's recursion limit; got more; flatten it") from error
    notes = "".join(comment(note) for note in said.about)
    end = "\n" if said.commented else ""
    return f"{above}type {name} = (_: {notes}{said.text}{end}) => any;"


class _Writer:
    """Says the schemas of one function's parameters, each in lines of an indent, which the first line has already."""

    def __init__(self, root: Mapping, where: str):
        self._root, self._where = root, where
        self._targets = Targets(root, where)
        self._open: set[int] = set()  # targets of references that are being said
        self._named: set[int] = set()  # those that a part of theirs has named
        self._once: set[int] = set()  # targets that have been said, and are only named from here on
        self._characters = self._level = 0

    def arguments(self) -> Type:
        return self._of([self._targets.of("#"), *self._targets.chain(self._root)], self._root, "")

    def _say(self, schema: object, indent: str, below: str | None = None) -> Type:
        """below: the indent of the property's name, if the type is to stand behind one."""
        return self._of(self._targets.chain(schema), schema, indent, below)

    def _of(self, chain: Sequence[Mapping], schema: object, indent: str, below: str | None = None) -> Type:
        """A schema that is another name of those in chain: their own name, if one of them has been said or is being said."""
        for i, target in enumerate(chain):
            if id(target) in self._open or id(target) in self._once:
                self._named.add(id(target))
                return Type(self._spent(self._targets.name(target)), annotations([schema, *chain[:i]]))
        self._level += 1
        self._targets.look(self._level)
        before = self._targets.looks
        self._open |= {id(target) for target in chain}
        out = self._whole(merged(schema, self._targets), indent, below)
        self._open -= {id(target) for target in chain}
        self._level -= 1
        long = len(out.text) > _REPEATED or self._targets.looks - before > _REPEATED_LOOKS
        for target in chain:
            if id(target) in self._named or (long and self._targets.times(target) > 1):
                self._once.add(id(target))
                label = comment(f"This is {self._targets.name(target)}.", below if out.listed else indent)
                out.text = self._spent(label) + out.text
                out.exact = out.exact and label + out.exact
        return out

    def _whole(self, schema: Merged, indent: str, below: str | None) -> Type:
        """All that a schema says: what it says itself, its unions, and the schemas that hold as well."""
        keywords = schema.keywords
        unions = {key: keywords[key] for key in UNIONS if key in keywords}
        typed = self._typed(keywords, unions, schema.more)
        own = self._own(schema, indent) if typed is None else []
        unions = unions if typed is None else typed
        more = [self._say(part, indent) for part in schema.more]
        alone = len(own) + len(unions) + len(more) + schema.never == 1
        null = keywords.get("nullable") is True and not _takes_null(keywords)
        parts = list(own)
        for key, variants in unions.items():
            variants = [*variants, {"type": "null"}] if null and alone else variants
            parts.append(self._union(key, variants, keywords.get("description"), indent, below if alone else None))
        parts += more + [Type(self._spent("never"))] * schema.never
        if alone:
            out = parts[0]
        else:
            text = " & ".join(part.bracketed for part in parts) or self._spent("any")
            out = Type(text, union=len(parts) > 1, described=any(part.described for part in own))
        if null and parts and not (alone and unions):
            out = Type(f"{out.bracketed if out.commented else out.text} | null", union=True, described=out.described)
        notes = [note for rules in schema.rules for note in self._rules(rules)]
        notes += [note for part in own for note in part.notes] + [note for part in more for note in part.about]
        if not alone and any(part.get("additionalProperties") is False for part in (keywords, *schema.more)):
            notes.append("additionalProperties: false")
        return dataclasses.replace(out, keywords=keywords, notes=notes)

    def _own(self, schema: Merged, indent: str) -> list[Type]:
        """Its values, or its types with what they are made of; nothing if it says neither."""
        keywords, kinds = schema.keywords, types(schema.keywords)
        made = [kind for kind, keys in (("object", OBJECT), ("array", ARRAY)) if any(key in keywords for key in keys)]
        made = [kind for kind in made if kinds is None or kind in kinds]
        if any(key in keywords for key in VALUES):
            found = [keywords["const"]] if "const" in keywords else keywords["enum"]
            nullable = keywords.get("nullable") is True  # OpenAPI asks for null in the enum as well
            found = [value for value in found if kinds is None or is_of(value, kinds) or (nullable and value is None)]
            words = self._spent(" | ".join(map(literal, found)) or "never")
            words = Type(words, union=len(found) > 1, unbracketed=kinds == ["string"] and None not in found)
            return [words, *(self._made_of(kind, schema, indent) for kind in made)]
        found = []
        for kind in made if kinds is None else kinds:
            whole = kind in made or (kind in ("object", "array") and keywords["type"] == kind)
            found.append(self._made_of(kind, schema, indent) if whole else Type(self._spent(_WORDS.get(kind, kind))))
        if len(found) < 2:
            return found
        text = " | ".join(dict.fromkeys(part.exact or part.text for part in found))
        notes = [note for part in found for note in part.notes]
        described = any(part.described for part in found)
        return [Type(text, notes=notes, union=True, unbracketed="\n" not in text, described=described)]

    def _made_of(self, kind: str, schema: Merged, indent: str) -> Type:
        return self._object(schema.keywords, indent) if kind == "object" else self._array(schema, indent)

    def _object(self, keywords: Mapping, indent: str) -> Type:
        described = "description" in keywords
        out = [self._spent(comment(keywords["description"], indent)) if described else "", "{\n"]
        properties, required = keywords.get("properties", {}), set(keywords.get("required", ()))
        for name, part in properties.items():
            out.append(self._property(f"{property_name(name)}{'' if name in required else '?'}", part, indent))
        patterns, rest = keywords.get("patternProperties", {}), keywords.get("additionalProperties", True)
        for name in keywords.get("required", ()):
            if name not in properties:
                out.append(self._property(property_name(name), True if patterns else rest, indent))
        for pattern, part in patterns.items():
            out.append(self._spent(comment(f"Each name that matches {literal(pattern)}:", indent)))
            out.append(self._property("[key: string]", part, indent))
        if "additionalProperties" in keywords and rest is not False:
            out.append(self._property("[key: string]", rest, indent))
        return Type("".join([*out, self._spent(f"{indent}}}")]), described=described)

    def _property(self, name: str, schema: object, indent: str) -> str:
        """The lines of one property, with what is said about it above its name."""
        said = self._say(schema, f"{indent}    ", indent)
        keywords = said.keywords
        above = [comment(keywords["title"], indent) + f"{indent}//\n"] if "title" in keywords else []
        examples = [f"- {literal(example)}" for example in keywords.get("examples", ())]
        examples = [comment(line, indent) for line in ["Examples:", *examples]] if examples else []
        description = [comment(keywords["description"], indent)] if "description" in keywords else []
        above += [*examples, *description] if said.listed else [*description, *examples]
        above += [comment(note, indent) for note in said.notes]
        words = [default(keywords["default"], bare=bool(keywords.get("enum")))] if "default" in keywords else []
        head = self._spent("".join([*above, *(comment(word, indent) for word in words if said.listed), f"{indent}{name}:"]))
        if said.listed:
            return f"{head}\n{said.text}{indent},\n"
        return f"{head} {said.bracketed if said.commented else said.text},{''.join(f' // {word}' for word in words)}\n"

    def _array(self, schema: Merged, indent: str) -> Type:
        keywords = schema.keywords
        if not any(key in keywords for key in ARRAY):
            return Type(self._spent("Array<any>"))
        first = [self._say(part, indent) for part in keywords.get("prefixItems", ())]
        notes = [f"item {i}: {note}" for i, part in enumerate(first) for note in part.about]
        rest = keywords.get("items", True)
        most = min((rules["maxItems"] for rules in schema.rules if "maxItems" in rules), default=len(first) + 1)
        if first and (rest is False or most <= len(first)):
            return Type(f"[{', '.join(part.bracketed for part in first)}]", notes=notes)
        others = self._say(rest, indent)
        notes += [f"items: {note}" for note in others.about]
        exact = f"{others.bracketed}[]"
        if first:
            return Type(f"[{', '.join([*(part.bracketed for part in first), f'...{exact}'])}]", notes=notes)
        return Type(others.array, notes=notes, exact="" if others.array == exact else exact)

    def _union(self, key: str, variants: Sequence, description: str | None, indent: str, below: str | None) -> Type:
        """Variants, a line each; those of anyOf in one line, if none is longer than its type."""
        said, lines = [], []
        start = indent if below is None else below
        for variant in variants:
            part = self._say(variant, f"{start}   ")
            words = [part.keywords["description"]] if "description" in part.keywords else []
            words = words if below is None or words != [description] else []
            words += part.notes
            if "default" in part.keywords:
                words.append(default(part.keywords["default"], bare=below is not None and bool(part.keywords.get("enum"))))
            broken = any(len(word.splitlines()) > 1 for word in words)
            above = "".join(comment(word, start) for word in words) if broken else ""
            behind = f" // {' '.join(''.join(word.splitlines()) for word in words)}" if words and not broken else ""
            said.append(part.text)
            lines.append((above, f"{start} | {part.text}{self._spent(behind)}", bool(behind) or part.commented))
            self._spent(above)
        if key == "anyOf" and not any(above or commented for above, _, commented in lines) and "\n" not in "".join(said):
            said = list(dict.fromkeys(said))
            return Type(" | ".join(said), union=len(said) > 1)
        if below is not None:
            return Type("".join(f"{above}{line}\n" for above, line, _ in lines), listed=True)
        commented = lines[-1][2]
        text = "\n" + "\n".join(above + line for above, line, _ in lines)
        return Type(text, union=True, unbracketed=key == "oneOf", commented=commented)

    def _typed(self, keywords: Mapping, unions: Mapping[str, Sequence], more: Sequence) -> dict[str, list] | None:
        """The unions of a schema that beside them says no more than a type, each variant with it; None if that would not be the same."""
        if (not unions and not more) or any(key in keywords for key in (*VALUES, *OBJECT, *ARRAY)):
            return None
        given = types(keywords)
        if given is None:
            return dict(unions)
        out = {key: [self._with_type(part, given) for part in parts] for key, parts in unions.items()}
        sure = all(part is not None for parts in out.values() for part in parts)
        return out if sure and all(self._with_type(part, given) is part for part in more) else None

    def _with_type(self, part: object, given: Sequence[str]) -> object:
        """A variant that says its type; None if it says another than it may be."""
        if not isinstance(part, Mapping):
            return {"type": list(given)} if part else False
        found = merged(part, self._targets)
        if (kinds := types(found.keywords)) is not None:
            return part if all(kind in given or (kind == "integer" and "number" in given) for kind in kinds) else None
        if not all(is_of(value, given) for value in values(found.keywords)):
            return None
        return {"type": given[0] if len(given) == 1 else list(given)} | part

    def _rules(self, rules: Mapping) -> Iterator[str]:
        """What TypeScript has no words for, a line for the keywords of one part."""
        said = {key: inlined(key, value, self._targets) for key, value in rules.items() if key not in ("if", "then", "else")}
        said = {key: value for key, value in said.items() if key not in _SAY_NOTHING or value is not _SAY_NOTHING[key]}
        said = {key: value for key, value in said.items() if key != "unevaluatedProperties" or not isinstance(value, bool)}
        cases = {key: inlined(key, rules[key], self._targets) for key in ("if", "then", "else") if key in rules}
        for part in (said, cases if "if" in cases and len(cases) > 1 else {}):
            if part:
                yield self._spent(", ".join(f"{key}: {literal(value)}" for key, value in part.items()))

    def _spent(self, text: str) -> str:
        self._characters += len(text)
        if self._characters > _CHARACTERS:
            raise ValueError(f"{self._where} must be shown in at most {_CHARACTERS:,} characters; got more; make it smaller")
        return text


def _takes_null(keywords: Mapping) -> bool:
    if "const" in keywords:
        return keywords["const"] is None
    return None in keywords["enum"] if "enum" in keywords else "null" in (types(keywords) or ())
