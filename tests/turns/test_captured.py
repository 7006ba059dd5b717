"""What a hook keeps, added up from pieces or written as it comes; a fault of what takes it is that answer's own."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

import gptoss_jax as gj
from gptoss_jax.engine.hooks.kinds import inside_of
from gptoss_jax.engine.requests import Piece, Request
from gptoss_jax.research.activations import Folder, read
from gptoss_jax.turns import running, tasks
from gptoss_jax.turns.completion import CompletionBuilder
from gptoss_jax.turns.prompts import hooks_of

PROMPT = [5, 6, 7]
LLM = SimpleNamespace(model=SimpleNamespace(tokenizer=None, config=gj.TINY), engine=SimpleNamespace(context=64))


class Sink:
    def __init__(self, at=None):
        self.rows, self.closed, self.at = [], 0, at

    def write(self, name, start, array):
        if start == self.at:
            raise OSError("no space left on device")
        self.rows.append((name, start, array.tolist()))

    def close(self):
        self.closed += 1


def request(hook):
    inside_of(hook, gj.TINY, 64)  # as the engine does where it is asked for
    return Request(PROMPT, gj.Sampling(), hook=hook)


def pieces(request, names=("embedding",), *, prompt=True, end="length"):
    """A prompt's two tokens, then three that are drawn in two pieces: values are positions."""
    values = lambda start, n: {name: (start, np.arange(start, start + n, dtype=np.float32)[:, None]) for name in names}
    piece = lambda tokens, captured, reason=None, **more: Piece(
        request, tokens, [0.0] * len(tokens), [{}] * len(tokens), reason, captured=captured, **more
    )
    first = [piece([], values(0, 2))] if prompt else []
    return [*first, piece([8, 9], values(2, 2)), piece([10], values(4, 1), end)]


def built(request, these):
    builder = CompletionBuilder(request, None)
    for piece in these:
        builder.add(piece)
    return builder.result()


def test_values_come_in_the_order_of_tokens_and_comparing_leaves_them_out():
    asked = request(gj.capturing("embedding"))
    done = built(asked, pieces(asked))
    assert done.tokens == (8, 9, 10) and done.captured["embedding"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert done == built(Request(PROMPT, gj.Sampling()), pieces(asked)) and "captured" not in repr(done)
    assert built(request(gj.steering({"embedding": 1.0})), []).captured is None


def test_what_began_anew_counts_no_more():
    asked = request(gj.capturing("embedding"))
    anew = Piece(asked, [], [], [], None, anew=True)
    done = built(asked, [*pieces(asked)[:2], anew, *pieces(asked)])
    assert done.captured["embedding"][:, 0].tolist() == [0, 1, 2, 3, 4]


def test_what_comes_behind_the_last_token_that_is_wanted_is_left_out():
    """As behind a stop string: a piece may hold more than was taken."""
    asked = request(gj.capturing("embedding"))
    builder = CompletionBuilder(asked, None)
    first, second, _ = pieces(asked)
    builder.add(first)
    builder._stop.found = True
    builder.add(second)
    assert builder.result().captured["embedding"][:, 0].tolist() == [0, 1]


def test_a_sink_gets_every_value_once_and_hears_of_the_end():
    sink = Sink()
    asked = request(gj.capturing("embedding", to=sink) | gj.capturing("norm"))
    done = built(asked, pieces(asked, ("embedding", "norm")))
    assert list(done.captured) == ["norm"] and sink.closed == 1
    assert sink.rows == [("embedding", 0, [[0], [1]]), ("embedding", 2, [[2], [3]]), ("embedding", 4, [[4]])]


def test_a_sink_that_fails_ends_its_answer_with_a_sentence():
    asked = request(gj.capturing("embedding", to=Sink(at=2)))
    done = built(asked, pieces(asked))
    assert done.finish_reason == "error" and asked.cancelled and done.tokens == (8, 9)
    assert done.error == "what its hook keeps could not be written: OSError: no space left on device."


def test_a_folder_has_a_place_for_each_request_in_the_order_in_which_they_are_begun(tmp_path):
    with Folder(tmp_path / "seen") as folder:
        hook = gj.capturing("embedding", to=folder)
        these = [request(hook) for _ in range(3)]
        builders = [CompletionBuilder(one, None) for one in these]
        for one, builder in list(zip(these, builders, strict=True))[::-1]:  # whichever is done first
            for piece in pieces(one)[: 1 + these.index(one)]:
                builder.add(piece)
    seen = read(tmp_path / "seen")
    assert {key: len(one["embedding"]) for key, one in seen.items()} == {"0": 2, "1": 4, "2": 5}


def test_hooks_that_name_one_folder_share_its_places(tmp_path):
    with Folder(tmp_path / "seen") as folder:
        for _ in range(2):
            asked = request(gj.capturing("embedding", to=folder))
            assert built(asked, pieces(asked)).error is None
    assert list(read(tmp_path / "seen")) == ["0", "1"]


def test_what_has_room_for_one_request_takes_one():
    hook = gj.capturing("embedding", to=Sink())
    for call in (lambda: hooks_of(hook, 2), lambda: tasks.begin(LLM, gj.Task(prompt=PROMPT, n=2, hook=hook))):
        with pytest.raises(ValueError, match="must get those of one; got .*; pass a Folder"):
            call()
    assert hooks_of(hook, 1) == [hook]


def test_one_hook_for_all_prompts_or_one_for_each():
    hook = gj.capturing("embedding")
    assert hooks_of([hook, None], 2) == [hook, None] and hooks_of(None, 2) == [None, None] and hooks_of(hook, 2) == [hook, hook]
    assert hooks_of([gj.Hook()], 1) == [None]
    with pytest.raises(ValueError, match="one hook for each prompt; got 1 for 2"):
        hooks_of([hook], 2)
    with pytest.raises(ValueError, match="hook must be made by"):
        hooks_of([hook, "x"], 2)


def test_every_answer_of_a_task_has_its_hook():
    hook = gj.capturing("embedding")
    job = tasks.begin(LLM, gj.Task(prompt=PROMPT, n=3, hook=hook))
    assert [one.hook for one in job.requests] == [hook] * 3
    assert tasks.begin(LLM, gj.Task(prompt=PROMPT, hook=gj.Hook())).requests[0].hook is None
    with pytest.raises(ValueError, match="hook must be made by"):
        tasks.begin(LLM, gj.Task(prompt=PROMPT, hook=lambda name, value: value))


def test_who_begins_for_event_loops_leaves_hooks_to_the_engine():
    """It has few threads, and a hook may have to be compiled."""
    looked = []
    engine = SimpleNamespace(context=64, check_request=looked.append)
    llm = SimpleNamespace(model=LLM.model, tokenizer=None, engine=engine)
    for hook, count in ((gj.capturing("embedding"), 0), (gj.Hook(), 1), (None, 2)):
        [job] = asyncio.run(running.begun(running._begin_all, llm, (gj.Task(prompt=PROMPT, hook=hook),), True, since=0.0))
        assert len(looked) == count and list(job.requests[0].prompt) == PROMPT
