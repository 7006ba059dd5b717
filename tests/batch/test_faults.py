"""A batch line ends nothing but itself: whatever it raises becomes its result, and the others have theirs."""

import errno
import json

from fake_llm import FakeLLM, run_job
import pytest

from gptoss_jax.batch import lines, results
from gptoss_jax.batch.journal import Journal

GOOD = {"id": "good", "prompt": "Hello"}
CHAT = {"method": "POST", "url": "/v1/chat/completions"}
COMPLETIONS = {"method": "POST", "url": "/v1/completions"}
RESPONSES = {"method": "POST", "url": "/v1/responses"}
FORMS = [
    {"id": "bad", "prompt": "bad"},
    {"custom_id": "bad", **CHAT, "body": {"messages": [{"role": "user", "content": "bad"}]}},
    {"custom_id": "bad", **RESPONSES, "body": {"input": "bad"}},
    {"custom_id": "bad", **COMPLETIONS, "body": {"prompt": ["good", "bad"]}},
]
every_form = pytest.mark.parametrize("bad", FORMS, ids=["plain", "chat", "responses", "completions"])


class Bad(RuntimeError):
    """What no one has thought of."""


ERRORS = [Bad("x" * 10_000), RecursionError("deep"), KeyError("k"), OverflowError(), OSError("a file of its own"), UnicodeError("\ud800")]
every_error = pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)


@pytest.fixture
def job(tmp_path):
    """Runs a job over lines, given as JSON or as they stand; returns its results."""

    def run(given, llm=None, **options) -> list[dict]:
        path, output = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
        path.write_bytes(b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in given))
        assert run_job(path, output, llm, **options)
        return [json.loads(line) for line in output.read_bytes().splitlines()]

    return run


def error_of(result: dict) -> dict | None:
    """The error of a result, which says its kind in the form's own way."""
    if "response" not in result:
        return result["error"]
    error = result["response"]["body"].get("error")
    if error is not None:
        kinds = {500: "server_error", 400: "invalid_request_error"}
        assert error["type"] == kinds[result["response"]["status_code"]]
        assert (error["code"] == "internal_error") == (error["type"] == "server_error")
    return error


def raising(error: Exception, part, wanted):
    """A part of the program that raises for some arguments."""

    def replacement(*arguments, **options):
        if wanted(*arguments):
            raise error
        return part(*arguments, **options)

    return replacement


def check(out: list[dict], code: str = "internal_error"):
    """Of a good line, a bad one, and a good one."""
    assert [error_of(one) is None for one in out] == [True, False, True]
    error = error_of(out[1])
    assert error["code"] == code and len(error["message"]) < 1_500
    return error["message"]


@every_form
@every_error
def test_whatever_reading_raises_is_the_lines_result(job, bad, error, monkeypatch):
    monkeypatch.setattr(lines, "read", raising(error, lines.read, lambda line, _: line.id == "bad"))
    said = check(job([GOOD, bad, GOOD | {"id": "last"}]), "invalid_request" if isinstance(error, ValueError) else "internal_error")
    assert isinstance(error, ValueError) or type(error).__name__ in said


@every_error
def test_whatever_parsing_raises_is_the_lines_result(job, error, monkeypatch):
    monkeypatch.setattr(lines, "parse", raising(error, lines.parse, lambda text, _: b"bad" in text))
    out = job([GOOD, FORMS[0], GOOD | {"id": "last"}])
    check(out, "invalid_request" if isinstance(error, ValueError) else "internal_error")
    assert (out[1]["id"], out[1]["line"]) == (None, 2)


@every_form
@every_error
def test_whatever_writing_raises_is_the_lines_result(job, bad, error, monkeypatch):
    monkeypatch.setattr(results, "answered", raising(error, results.answered, lambda request, *_: request.line.id == "bad"))
    check(job([GOOD, bad, GOOD | {"id": "last"}]), "invalid_request" if isinstance(error, ValueError) else "internal_error")


class Fails(FakeLLM):
    """Raises for prompts with "bad" in them."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def answer(self, task):
        if "bad" in str(task.prompt or task.messages):
            raise self.error
        return super().answer(task)


@every_form
def test_a_task_that_failed_on_the_way_is_an_error_of_the_servers(job, bad):
    assert check(job([GOOD, bad, GOOD | {"id": "last"}], Fails(Bad("broken")))) == "the task failed on the way: Bad('broken')."


class Odd(FakeLLM):
    """Its answers to "bad" are such as no result can be made of."""

    def answer(self, task):
        outcome = super().answer(task)
        if "bad" in str(task.prompt or task.messages):
            outcome.answers[0].text, outcome.answers[0].said, outcome.answers[0].finish_reason = object(), object(), {1, 2}
        return outcome


@every_form
def test_an_answer_that_cannot_be_written_is_an_error(job, bad):
    assert "TypeError" in check(job([GOOD, bad, GOOD | {"id": "last"}], Odd()))


@every_form
@pytest.mark.parametrize("reason", ["timeout", "cancelled"])
def test_an_answer_that_was_ended_is_one_cut_off(job, bad, reason):
    class Ends(FakeLLM):
        def answer(self, task):
            outcome = super().answer(task)
            outcome.answers[0].finish_reason = reason
            return outcome

    (out,) = job([bad], Ends())
    if "response" not in out:
        assert out["finish_reason"] == reason
    elif bad["url"].endswith("responses"):
        assert out["response"]["body"]["status"] == "incomplete"
    else:
        assert out["response"]["body"]["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), SystemExit(3)], ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["read", "answered"])
def test_what_is_not_the_lines_own_ends_the_job_which_goes_on_afterwards(job, error, where, monkeypatch):
    given = [GOOD, FORMS[0], GOOD | {"id": "last"}]
    with monkeypatch.context() as patch:
        room = lines if where == "read" else results
        patch.setattr(room, where, raising(error, getattr(room, where), lambda what, *_: getattr(what, "line", what).id == "bad"))
        with pytest.raises(type(error)):
            job(given)
    assert all(error_of(one) is None for one in job(given))


@pytest.mark.parametrize("bad", [FORMS[0], {"id": "bad", "what": 1}], ids=["answered", "refused"])
def test_a_journal_that_cannot_be_written_ends_the_job(job, bad, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    with monkeypatch.context() as patch:
        patch.setattr(Journal, "add", raising(full, Journal.add, lambda _, place, *more: place == 1))
        with pytest.raises(OSError, match="No space left"):
            job([GOOD, bad, GOOD | {"id": "last"}])
    assert len(job([GOOD, bad, GOOD | {"id": "last"}])) == 3


@pytest.mark.parametrize("most", [60, 1_000])
def test_lines_that_are_too_long_are_refused_and_the_others_go_on(job, most):
    long = {"id": "long", "prompt": "x" * most}
    out = job([GOOD, long, json.dumps(GOOD | {"id": "edge"}).ljust(most).encode(), b" " * 3 * most, long], most=most)
    assert [one["id"] for one in out] == ["good", None, "edge", None] and [one.get("line") for one in out] == [None, 2, None, 5]
    assert [error_of(one) and error_of(one)["code"] for one in out] == [None, "line_too_long", None, "line_too_long"]
    assert f"at most {most:,} bytes" in out[1]["error"]["message"]
