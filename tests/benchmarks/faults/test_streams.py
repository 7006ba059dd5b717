"""Many streams: every form is asked the same, silence is what a reader waits, and other tokens are noticed."""

from collections.abc import Iterator
import json
import time
from types import SimpleNamespace

from absl import flags
import pytest

from benchmarks.faults import streams
import gptoss_jax as gj

SAMPLING = gj.Sampling(temperature=0, max_tokens=5, ignore_eos=True)


class Made:
    """Stands in for an LLM: answers at once, the same in every form."""

    pauses = (0.0,) * 3

    def _tokens(self, asked: str) -> tuple[int, ...]:
        return tuple(asked.encode()[:5])

    def run(self, tasks) -> Iterator[SimpleNamespace]:
        for task in reversed(tasks):
            yield SimpleNamespace(task=task, answers=(SimpleNamespace(tokens=self._tokens(task.messages)),))

    def render(self, messages: str, **options) -> str:
        return messages

    def generate(self, prompts, sampling) -> list[SimpleNamespace]:
        return [SimpleNamespace(tokens=self._tokens(prompt)) for prompt in prompts]

    def chat(self, messages, sampling, **options) -> SimpleNamespace:
        return SimpleNamespace(tokens=self._tokens(messages))

    def stream(self, messages, sampling, **options):
        return Pieces(self.pauses, self._tokens(messages))


class Pieces:
    """A stream whose pieces come after pauses."""

    def __init__(self, pauses, tokens):
        self._pauses, self.reply = iter(pauses), SimpleNamespace(tokens=tokens)

    def __iter__(self):
        return self

    def __next__(self):
        time.sleep(next(self._pauses))

    def __aiter__(self):
        return self

    async def __anext__(self):
        try:
            next(self)
        except StopIteration:
            raise StopAsyncIteration from None


class WithLoop(Made):
    def astream(self, messages, sampling, **options):
        return self.stream(messages, sampling, **options)


def compare(llm, **options) -> dict:
    return streams.compare(llm, [4], **{"loops": 30, "rounds": 2, "sampling": SAMPLING} | options)


def test_questions_differ():
    assert len(set(streams.questions(1000))) == 1000


def test_every_form_is_run_beside_one_run():
    results = compare(WithLoop())
    beside = {name: figures.get("beside") for name, figures in results.items()}
    assert beside == {
        "chat, one at a time": None,
        "stream, one at a time": "chat, one at a time",
        "4 in one run": None,
        **dict.fromkeys(["4 in generate", "4 streams, threads", "4 streams, asyncio"], "4 in one run"),
        "30 streams, asyncio": None,
    }
    assert all(len(figures["rounds"]) == 2 and figures["tokens_per_second"] > 0 for figures in results.values())
    for name in beside:
        assert name in streams.table(results)


def test_without_astream_nothing_is_run_in_a_loop():
    assert not [name for name in compare(Made()) if "asyncio" in name]


def test_silence_is_between_pieces_and_before_the_end_and_first_before_them():
    llm = Made()
    llm.pauses = (0.05, 0.0, 0.15, 0.0)
    run = streams.measure(llm, streams.in_threads, 3, SAMPLING)
    assert len(run.first) == len(run.silence) == 3
    assert all(first >= 0.05 for first in run.first) and all(silence >= 0.15 for silence in run.silence)


def test_other_tokens_are_noticed():
    class Other(Made):
        def generate(self, prompts, sampling):
            return [SimpleNamespace(tokens=(9,)) for _ in prompts]

    with pytest.raises(RuntimeError, match="4 in generate gave others to question 0"):
        compare(Other())


def test_a_stream_without_an_answer_is_noticed(monkeypatch):
    monkeypatch.setattr(streams, "streamed", lambda *_: None)
    with pytest.raises(RuntimeError, match="3 of 3 were not"):
        streams.measure(Made(), streams.in_threads, 3, SAMPLING)


@pytest.mark.thorough
def test_streams_of_nano_are_timed(capsys):
    given = flags.FlagValues()
    streams.define_flags(given)
    given(["streams", "--streams=6", "--loops=40", "--tokens=12", "--rounds=1", "--slots=4", "--json"])
    assert streams.main([], given) == 0
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["forms"]["6 streams, threads"]["silence"] > 0 and "40 streams, asyncio" in result["forms"]
