"""Lines that are deep, huge or broken, in every field of every form: each has one result, whatever the model does with it."""

import itertools
import json
import random
import zlib

from fake_llm import FakeLLM, run_job
import pytest

from gptoss_jax.batch import lines, results
from gptoss_jax.harmony import ToolCall
from gptoss_jax.openai.asked import Defaults
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading.sampling import SAMPLING

FORMS = {  # fields with their JSON; those of "body" have their own
    "plain": {"id": '"bad"', "prompt": '"bad"'},
    "chat": {
        "custom_id": '"bad"',
        "method": '"POST"',
        "url": '"/v1/chat/completions"',
        "body": {"messages": '[{"role": "user", "content": "x"}]'},
    },
    "responses": {"custom_id": '"bad"', "method": '"POST"', "url": '"/v1/responses"', "body": {"input": '"bad"'}},
    "completions": {"custom_id": '"bad"', "method": '"POST"', "url": '"/v1/completions"', "body": {"prompt": '"bad"'}},
}
every_form = pytest.mark.parametrize("form", FORMS)
NUMBERS = (
    *("1" * 400, "-" + "1" * 400, "9" * 4_300, "9" * 4_301, "1e308", "-1e308", "1e400", "-0.0", "1e-400", "NaN", "Infinity"),
    *("0", "-1", "2147483648", "9223372036854775808", "0.1", "1" * 30 + ".5"),
)
WORDS = (
    *("", "a", "user", "low", "x" * 3_000, r"\ud800", r"\udc00\ud800", r"\u0000", r"\n", "\u2028", "\N{SNOWMAN}", "\\", "1" * 400),
    *("json_object", "text", "auto"),
)
NAMES = (
    *("messages", "prompt", "input", "tools", "response_format", "max_tokens", "logprobs", "instructions", "metadata", "model", "text"),
    *("reasoning", "include", "return_tokens", "what", "url", "method", *(field.name for field in SAMPLING), "n", "priority", "time_limit"),
)


def written(content: dict) -> str:
    """An object of fields whose values are JSON already."""
    told = ((name, written(value) if isinstance(value, dict) else value) for name, value in content.items())
    return "{" + ", ".join(f'"{name}": {value}' for name, value in told) + "}"


def with_fields(form: str, more: dict) -> dict:
    """A form's line with other fields, in its body where it has one."""
    content = FORMS[form]
    return content | more if "body" not in content else content | {"body": content["body"] | more}


def deep(depth: int, opening: str = "[", closing: str = "]") -> str:
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize("opening, closing", [("[", "]"), ('{"a":', "}"), ('[{"a":', "}]")])
@every_form
def test_what_is_nested_too_deeply_is_refused_in_every_field(form, opening, closing):
    for name, depth in itertools.product(NAMES, (101, 400, 1_480, 1_490, 1_500)):
        line = lines.parse(written(with_fields(form, {name: deep(depth, opening, closing)})).encode(), 1)
        with pytest.raises(Refused, match="nested at most 100 deep|no JSON|custom_id must") as refusal:
            lines.read(line, Defaults())
        json.loads(results.refused(line, refusal.value))


def test_what_is_nested_as_deeply_as_is_allowed_is_read():
    tools = f"[{deep(49, '{' + '"a": [', ']}')}]"
    line = lines.parse(written({"id": "1", "messages": '"x"', "tools": tools}).encode(), 1)
    assert lines.read(line, Defaults()).tasks[0].tools == json.loads(tools)
    assert lines.parse(written({"id": "1", "prompt": f"[{', '.join(['[{}]'] * 1_000)}]"}).encode(), 1).problem is None  # many, none deep


@pytest.mark.parametrize("number", NUMBERS, ids=itertools.count())
@every_form
def test_any_number_in_any_field_is_taken_or_refused_in_a_short_sentence(form, number):
    more = ("max_completion_tokens", "max_output_tokens", "top_logprobs", "id", "reasoning_effort")
    for name, value in itertools.product((*NAMES, *more), (number, f"[{number}]", written({number: number}), f'"{number}"')):
        line = lines.parse(written(with_fields(form, {name: value})).encode(), 1)
        try:
            task = lines.read(line, Defaults()).tasks[0]
            assert -(2**31) <= task.priority < 2**31 and 0 < (task.time_limit or 1) <= 10**9 and 1 <= task.n <= 128
        except Refused as refusal:
            assert len(str(refusal)) < 500
            json.loads(results.refused(line, refusal))


def nasty_text(rng: random.Random) -> str:
    return f'"{"".join(rng.choices(WORDS, k=rng.randrange(3)))}"'


def nasty_value(rng: random.Random, depth: int = 0) -> str:
    """JSON, or nearly."""
    kind = rng.randrange(12)
    if kind < 3 and depth < 3:
        return f"[{', '.join(nasty_value(rng, depth + 1) for _ in range(rng.randrange(4)))}]"
    if kind < 5 and depth < 3:
        return written({nasty_text(rng)[1:-1]: nasty_value(rng, depth + 1) for _ in range(rng.randrange(4))})
    if kind == 5 and depth == 0:
        return deep(rng.choice((1, 50, 99, 100, 101, 1_490, 20_000)), *rng.choice((("[", "]"), ('{"a":', "}"))))
    if kind < 8:
        return rng.choice(NUMBERS)
    return nasty_text(rng) if kind < 11 else rng.choice(("null", "true", "false", "x", ""))


def nasty_line(rng: random.Random, number: int) -> bytes:
    """A good line with some fields more, or others in their place, then cut or damaged now and then."""
    content = with_fields(rng.choice([*FORMS]), {name: nasty_value(rng) for name in rng.sample(NAMES, rng.choice((0, 1, 1, 2)))})
    content |= {"id" if "id" in content else "custom_id": f'"r{number}"'}
    if rng.random() < 0.1:
        content[rng.choice([*content, "id"])] = nasty_value(rng)
    line = written(content).encode("utf-8", "surrogatepass")
    if rng.random() < 0.1:
        place = rng.randrange(len(line))
        noise = rng.randbytes(3).replace(b"\n", b"")
        line = rng.choice((line[:place], line[:place] + noise + line[place:], b"\xef\xbb\xbf" + line))
    return line if line.strip() else b"x"


class Chaotic(FakeLLM):
    """Fails at some tasks, and gives answers to others that cannot be written; as the task says."""

    def __init__(self):
        super().__init__(slots=8)
        self.faults = 0

    def answer(self, task):
        luck = zlib.crc32(task.key[1].line.name.encode("utf-8", "surrogatepass")) % 8
        if luck in (1, 2):
            self.faults += 1
            raise (KeyError("k" * 1_000), RecursionError("maximum recursion depth exceeded"))[luck - 1]
        outcome = super().answer(task)
        if luck == 3 and outcome.answers:
            self.faults += 1
            for answer in outcome.answers:
                answer.text, answer.tool_calls, answer.said = object(), (ToolCall("f", object()),), object()
        return outcome


@pytest.mark.parametrize("seed, count", [(0, 300), *(pytest.param(i, 3_000, marks=pytest.mark.thorough) for i in range(1, 9))])
def test_every_line_has_one_result_whatever_it_holds_and_whatever_the_model_does(tmp_path, seed, count):
    rng, llm, most = random.Random(seed), Chaotic(), 20_000
    given = [nasty_line(rng, i) for i in range(count)]
    path, output = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    path.write_bytes(b"\n".join(given))
    assert run_job(path, output, llm, most=most)
    out = [json.loads(line) for line in output.read_bytes().splitlines()]
    assert len(out) == count
    bodies = [one["response"]["body"] if "response" in one else one for one in out]
    errors = [body["error"] for body in bodies if body.get("error")]
    assert all(0 < len(error["message"]) < 1_500 for error in errors)
    internal = [error for error in errors if error["code"] == "internal_error"]
    assert len(internal) == llm.faults  # what lines hold is refused at the door, all of it
    for number, (line, one) in enumerate(zip(given, out, strict=True), 1):
        line = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
        assert one.get("custom_id", one.get("id")) == (lines.parse(line, number).id if len(line) <= most else None)
