"""text_completion objects and their parts, as clients look for them."""

from openai.types import Completion as Typed
import pytest
from small_vocabulary import small_vocabulary
from wholes import TOLD

from gptoss_jax.openai import writing
from gptoss_jax.openai.asked import Asked
from gptoss_jax.openai.echoed import Echoed
from gptoss_jax.openai.errors import Refused
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.turns.completion import Completion, CompletionPiece
from gptoss_jax.turns.task import Outcome, Task


def asked(*prompts, n=1, logprobs=None, **given) -> Asked:
    tasks = tuple(Task(prompt=prompt, n=n, sampling=Sampling(logprobs=logprobs)) for prompt in prompts)
    return Asked("completions", tasks, given)


def drawn(text, *, logprobs=None, reason="length", error=None) -> Completion:
    tokens = tuple(small_vocabulary().encode(text))
    numbers = None if logprobs is None else (-0.5,) * len(tokens)
    tops = tuple({token: -0.5, small_vocabulary().encode("z")[0]: -2.0} for token in tokens) if logprobs else None
    return Completion(text, tokens, numbers, tops, reason, error=error)


def outcomes(of, *answers) -> list[Outcome]:
    n = of.tasks[0].n
    groups = [answers[i : i + n] for i in range(0, len(answers), n)]
    errors = [next((answer.error for answer in group if answer.error), None) for group in groups]
    return [Outcome(t, g, 4, e, failed=e is not None) for t, g, e in zip(of.tasks, groups, errors, strict=True)]


def test_answers_are_numbered_through_all_prompts():
    of = asked("a", "b", n=2)
    body = writing.body(of, TOLD, outcomes(of, *map(drawn, "1234")), None)
    assert [(one["index"], one["text"], one["logprobs"], one["finish_reason"]) for one in body["choices"]] == [
        (i, str(i + 1), None, "length") for i in range(4)
    ]
    assert (body["id"], body["object"], body["created"], body["model"]) == ("cmpl-0f", "text_completion", 5, "m")
    assert body["usage"]["prompt_tokens"] == 8 and body["usage"]["completion_tokens"] == 4
    Typed.model_validate(body)


def test_log_probabilities_are_four_lists():
    of = asked("x", logprobs=1)
    [choice] = writing.body(of, TOLD, outcomes(of, drawn("ab", logprobs=1, reason="stop")), small_vocabulary())["choices"]
    assert choice["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -0.5, "z": -2.0}, {"b": -0.5, "z": -2.0}],
        "text_offset": [0, 1],
    }
    of = asked("x", logprobs=0)
    [choice] = writing.body(of, TOLD, outcomes(of, drawn("ab", logprobs=0)), small_vocabulary())["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"a": -0.5}, {"b": -0.5}]


@pytest.mark.parametrize("prompt", ["xy", small_vocabulary().encode("xy")])
def test_an_echo_without_log_probabilities(prompt):
    of = asked(prompt, echo=True)
    [choice] = writing.body(of, TOLD, outcomes(of, drawn("ab")), small_vocabulary())["choices"]
    assert (choice["text"], choice["logprobs"]) == ("xyab", None)
    read = [Echoed(small_vocabulary().encode("xy"))]
    assert writing.body(of, TOLD, outcomes(of, drawn("ab")), small_vocabulary(), echoed=read)["choices"] == [choice]


def test_a_prompt_can_be_scored_without_drawing_anything():
    """As lm-eval does."""
    of = asked("xy", "w", logprobs=1, echo=True, max_tokens=0, stream_options={"include_usage": True})
    x, y, z, w = small_vocabulary().encode("xyzw")
    echoed = [Echoed([x, y], [None, -0.25], [None, {z: -0.1}]), Echoed([w], [None], [None])]
    body = writing.body(of, TOLD, [], small_vocabulary(), echoed=echoed)
    assert [choice["finish_reason"] for choice in body["choices"]] == ["length", "length"]
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["x", "y"],
        "token_logprobs": [None, -0.25],
        "top_logprobs": [None, {"z": -0.1, "y": -0.25}],
        "text_offset": [0, 1],
    }
    assert (body["usage"]["prompt_tokens"], body["usage"]["completion_tokens"], body["usage"]["total_tokens"]) == (3, 0, 3)
    events = writing.events(of, TOLD, small_vocabulary(), echoed=echoed)
    out = [data for _, data in events.begin() + events.end([])]
    assert [choice["finish_reason"] for data in out for choice in data["choices"]] == [None, None, "length", "length"]
    assert [choice["logprobs"] for data in out[:2] for choice in data["choices"]] == [one["logprobs"] for one in body["choices"]]
    assert out[-1]["usage"] == body["usage"] and [data["usage"] for data in out[:-1]] == [None] * 4


def test_two_tokens_of_the_same_text_are_told_apart():
    """A vocabulary with bytes for what it has no piece for has some letters twice."""
    small, of = small_vocabulary(), asked("x", logprobs=1)
    [letter] = small.encode("a")
    [byte] = [token for token in range(small.vocab_size) if token != letter and small.token_bytes(token) == b"a"]
    for came, tops in ((byte, {letter: -0.25, byte: -1.5}), (byte, {letter: -0.25}), (byte, {byte: -1.5, letter: -3.0})):
        whole = Completion("a", (came,), (-1.5,), (tops,), "length")
        [choice] = writing.body(of, TOLD, outcomes(of, whole), small)["choices"]
        assert choice["logprobs"]["top_logprobs"] == [{"a": -1.5, r"bytes:\x61": tops[letter]}]


def test_what_cannot_be_in_json_is_very_unlikely():
    of = asked("x", logprobs=1)
    token = small_vocabulary().encode("a")[0]
    whole = Completion("a", (token,), (float("-inf"),), ({token: float("-inf")},), "length")
    [choice] = writing.body(of, TOLD, outcomes(of, whole), small_vocabulary())["choices"]
    assert choice["logprobs"]["token_logprobs"] == [-9999.0] and choice["logprobs"]["top_logprobs"] == [{"a": -9999.0}]


def test_a_fault_on_the_way():
    of = asked("a", "b", stream_options={"include_usage": True})
    answers = drawn("1", reason="error", error="no."), drawn("2")
    with pytest.raises(Refused) as caught:
        writing.body(of, TOLD, outcomes(of, *answers), None)
    assert caught.value.status == 500
    events = writing.events(of, TOLD, None)
    out = events.begin() + events.add(1, CompletionPiece("2", answers[1].tokens)) + events.done(0, answers[0]) + events.done(1, answers[1])
    assert [(c["index"], c["text"], c["finish_reason"]) for _, d in out for c in d["choices"]] == [
        (1, "2", None), (0, "1", None), (1, "", "length"),
    ]  # fmt: skip
    [(name, last)] = events.end(outcomes(of, *answers))
    assert name is None and last["error"]["message"] == "no." and events.end([]) == []


def test_the_sdk_knows_the_parts():
    """But for the finish reason of a part that is not the last: null on every wire, and "stop" in the SDK's type."""
    of = asked("a", logprobs=1, stream_options={"include_usage": True})
    events, whole = writing.events(of, TOLD, small_vocabulary()), drawn("ab", logprobs=1)
    part, last, usage = [data for _, data in events.done(0, whole) + events.end(outcomes(of, whole))]
    assert part["choices"][0].pop("finish_reason") is None
    part["choices"][0]["finish_reason"] = "stop"
    for data in (part, last, usage):
        Typed.model_validate(data)
