"""Bodies of /v1/completions: prompts in every shape, what comes of each."""

import pytest

from gptoss_jax.openai import reading
from gptoss_jax.openai.asked import Asked, Defaults, Reading
from gptoss_jax.openai.errors import Refused
from gptoss_jax.sampling.options import Sampling

LIVE = Reading(Defaults(seed=None), live=True, strict=False)


def read(how: Reading = LIVE, **body) -> Asked:
    return reading.read("completions", {"model": "m", "prompt": "Hello"} | body, name="cmpl-1", reading=how)


@pytest.mark.parametrize(
    "prompt, prompts",
    [("x", ["x"]), ("", [""]), (["x", "y"], ["x", "y"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]]), ([10**30], [[10**30]])],
)
def test_prompts_are_one_or_several(prompt, prompts):
    asked = read(prompt=prompt, temperature=0)
    assert [task.prompt for task in asked.tasks] == prompts
    assert {task.sampling for task in asked.tasks} == {Sampling(temperature=0, max_tokens=16)}


@pytest.mark.parametrize("prompt", [[], [[]], ["x", 1], [1, "x"], [[1], "x"], [True], {}, 5, None, [None], ["x"] * 1025])
def test_other_prompts_are_refused(prompt):
    with pytest.raises(Refused, match="prompt must be") as refused:
        read(prompt=prompt)
    assert refused.value.field == "prompt" and len(str(refused.value)) < 500


def test_prompts_have_seeds_of_their_own_unless_one_is_named():
    seeds = [task.sampling.seed for task in read(Reading(live=True), prompt=["x", "x", "y"]).tasks]
    assert len({*seeds}) == 3 and seeds[0] == read(Reading(live=True)).tasks[0].sampling.seed
    assert {task.sampling.seed for task in read(prompt=["x", "x"], seed=5).tasks} == {5}


def test_echo_and_nothing_drawn():
    asked = read(prompt=[[1, 2]], max_tokens=0, echo=True, logprobs=1)
    assert asked.echo and not asked.draws and asked.tasks[0].sampling == Sampling(max_tokens=1, logprobs=1)
    assert read(max_tokens=1, echo=True).draws and not read().echo and read().draws
    for body in ({"max_tokens": 0}, {"max_tokens": 0, "echo": False}, {"max_tokens": False, "echo": True}):
        with pytest.raises(Refused, match="max_tokens must be a whole number, 1 to"):
            read(**body)
    with pytest.raises(Refused, match="echo must be false"):
        read(Reading(), echo=True)


def test_limits_are_16_tokens_unless_something_is_said():
    assert read(Reading(Defaults(max_tokens=7))).tasks[0].sampling.max_tokens == 7
    assert read(max_tokens=5).tasks[0].sampling.max_tokens == 5


@pytest.mark.parametrize(
    "body, field",
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 2}, "best_of"),
        ({"n": 2, "best_of": 3}, "best_of"),
        ({"best_of": "x"}, "best_of"),
        ({"logprobs": 6}, "logprobs"),
        ({"logprobs": True}, "logprobs"),
        ({"n": 0}, "n"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"echo": 1}, "echo"),
        ({"prompt_logprobs": 1}, "prompt_logprobs"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(body, field):
    with pytest.raises(Refused, match=f"^{field} must be") as refused:
        read(**body)
    assert refused.value.field == field


def test_given_ids_stand_in_the_list_of_log_probabilities():
    assert read(logprobs=0, logprob_token_ids=[7]).tasks[0].sampling.logprob_token_ids == (7,)
    assert read(logprob_token_ids=[]).tasks[0].sampling.logprob_token_ids == ()
    with pytest.raises(Refused, match="logprob_token_ids needs logprobs"):
        read(logprob_token_ids=[7])


def test_forms_and_names():
    assert read(n=2, best_of=2, suffix="", structured_outputs={"regex": "[0-9]+"}).tasks[0].response_format == {
        "type": "regex",
        "regex": "[0-9]+",
    }
    asked = read(messages=[])
    assert asked.ignored == ("messages",)
    refused = reading.refusal(asked, "prompt of token ids must be below 100; got 10**30; pass None")
    assert (str(refused), refused.field) == ("prompt of token ids must be below 100; got 10**30; pass null", "prompt")
    for sentence, says in (
        ("a prompt needs a token", "prompt needs a token"),
        ("token ids must lie in 0", "prompt's token ids must lie in 0"),
    ):
        refused = reading.refusal(asked, sentence)
        assert (str(refused), refused.field) == (says, "prompt")
