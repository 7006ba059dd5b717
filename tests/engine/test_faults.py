"""What one request brings reaches no other, and a failed dispatch costs no more than what was open. Every request gets a last piece."""

import threading

from mixed_requests import everything, fresh, make, nothing_is_held, prompt, sampling
import numpy as np
import pytest

from gptoss_jax.engine.requests import Request
from gptoss_jax.sampling.options import Sampling

GREEDY = Sampling(temperature=0, max_tokens=12, ignore_eos=True)
BESIDE = [(prompt(n, n), sampling(n, max_tokens=14, ignore_eos=True)) for n in (3, 20, 40, 17, 9)]


@pytest.fixture(scope="module")
def engine():
    return make()


@pytest.fixture(scope="module")
def beside(engine):
    return everything(engine, fresh(BESIDE))


class Panic(BaseException):
    """What a library written in Rust raises where it gives up: no Exception."""


class Unsayable(Exception):
    def __str__(self):
        raise RuntimeError("and not even this")


OWN = ValueError("a fault of its own")


class Form:
    """A constraint that allows everything until it does something else in its `at`th call of a method."""

    pauses, problem = (), ""

    def __init__(self, where="", at=3, what=OWN):
        self.where, self.left, self.what = where, at, what

    def _called(self, where):
        if where == self.where:
            self.left -= 1
            if self.left == 0:
                if isinstance(self.what, str):
                    self.problem = self.what
                elif self.what is not None:
                    raise self.what
                return True
        return False

    def mask(self, out):
        out[:] = 0 if self._called("mask") else np.uint32(0xFFFFFFFF)
        return True

    def advance(self, token):
        self._called("advance")


FAULTS = {
    "mask raises": (Form("mask"), 2, "its constraint failed: ValueError: a fault of its own"),
    "advance raises": (Form("advance"), 2, "its constraint failed: ValueError: a fault of its own"),
    "mask panics": (Form("mask", 1, Panic("unreachable")), 0, "its constraint failed: Panic: unreachable"),
    "advance panics": (Form("advance", 1, Panic()), 0, "its constraint failed: Panic."),
    "interrupts": (Form("mask", 5, KeyboardInterrupt()), 4, "its constraint failed: KeyboardInterrupt."),
    "ends the program": (Form("advance", 5, SystemExit(3)), 4, "its constraint failed: SystemExit: 3"),
    "allows nothing": (Form("mask", 4, None), 3, "its constraint must allow some token, and allowed none"),
    "a problem at a mask": (Form("mask", 4, "too many items"), 3, "its form could not be followed to the end: too many items"),
    "a problem after a token": (Form("advance", 4, "too many items"), 3, "its form could not be followed to the end: too many items"),
    "an error without words": (Form("advance", 2, Unsayable()), 1, "its constraint failed: Unsayable: and it could not say what"),
    "a long error": (Form("advance", 2, ValueError("x" * 10**7)), 1, "its constraint failed: ValueError: xxx"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_constraint_s_fault_ends_its_request_at_that_token_and_touches_no_other(engine, beside, name):
    form, tokens, words = FAULTS[name]
    requests = fresh(BESIDE)
    faulty = Request(prompt(5), GREEDY, constraint=form)
    pieces = {id(r): [] for r in [faulty, *requests]}
    for piece in engine.run([*requests[:2], faulty, *requests[2:]]):
        pieces[id(piece.request)].append(piece)
    own = pieces.pop(id(faulty))
    assert own[-1].finish_reason == "error" and own[-1].error.startswith(words) and len(own[-1].error) < 300
    got = [token for piece in own for token in piece.tokens]
    assert len(got) == tokens and got == everything(engine, [Request(prompt(5), GREEDY)])[0][0][:tokens]
    assert [([t for p in pieces[id(r)] for t in p.tokens]) for r in requests] == [one[0] for one in beside]
    assert all(pieces[id(r)][-1].finish_reason == "length" for r in requests)
    nothing_is_held(engine)


@pytest.mark.parametrize("where", ["decode", "read", "place", "fetch"])
def test_a_failed_dispatch_ends_what_is_open_with_a_word_and_the_next_request_works(monkeypatch, caplog, where):
    engine, calls = make(), []
    wanted = everything(engine, fresh(BESIDE))

    def failing(*_):
        calls.append(where)
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with monkeypatch.context() as patch:
        if where == "fetch":
            patch.setattr(engine.programs, "fetch", failing)
        else:
            patch.setitem(engine.programs._compiled, where, failing)
        ended = {id(piece.request): piece for piece in engine.run(fresh(BESIDE)) if piece.finish_reason}
    assert calls and len(ended) == len(BESIDE)
    assert {piece.finish_reason for piece in ended.values()} == {"error"}
    assert all("out of memory" in piece.error and "begins anew" in piece.error for piece in ended.values())
    assert everything(engine, fresh(BESIDE)) == wanted
    nothing_is_held(engine)


def test_a_device_that_stays_lost_answers_every_request_with_an_error(monkeypatch):
    engine = make()
    engine.prepare()
    lost = lambda *_: (_ for _ in ()).throw(RuntimeError("device lost"))
    monkeypatch.setitem(engine.programs._compiled, "read", lost)
    monkeypatch.setattr(engine.programs, "renew", lost)
    for _ in range(3):
        [piece] = engine.run([Request(prompt(5), GREEDY)])
        assert piece.finish_reason == "error" and "device lost" in piece.error


def test_what_an_iterable_raises_comes_after_what_was_asked_for_before(engine, beside):
    def requests():
        yield from fresh(BESIDE)[:3]
        raise OSError("the disk is gone")

    ended = 0
    with pytest.raises(OSError, match="the disk is gone"):
        for piece in engine.run(requests()):
            ended += piece.finish_reason == "length"
    assert ended == 3
    assert everything(engine, fresh(BESIDE)) == beside
    nothing_is_held(engine)


def test_a_reader_that_is_slow_or_gone_holds_up_nobody(engine, beside):
    slow = engine.run(fresh(BESIDE))
    next(slow)
    forgotten = engine.run([Request(prompt(4), Sampling(temperature=0, ignore_eos=True, max_tokens=90))])
    next(forgotten)
    del forgotten
    assert everything(engine, fresh(BESIDE)) == beside
    assert sum(piece.finish_reason is not None for piece in slow) == len(BESIDE)
    nothing_is_held(engine)


def test_threads_that_come_and_go_get_what_they_would_get_alone(engine, beside):
    wrong = []

    def ask(i):
        for k in range(3):
            requests = fresh(BESIDE[i % 5 :])
            if (i + k) % 4 == 0:  # leaves
                for _, piece in zip(range(1 + k), engine.run(requests), strict=False):
                    del piece
            elif everything(engine, requests) != beside[i % 5 :]:
                wrong.append(i)

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    nothing_is_held(engine)


def test_time_limits_count_while_a_request_waits():
    engine = make(slots=1)
    engine.prepare()
    long = Sampling(temperature=0, ignore_eos=True, max_tokens=80)
    ahead = [Request(prompt(5, i), long, seconds_per_piece=0.0) for i in range(4)]
    late = Request(prompt(6), long, time_limit=0.0)
    ended = {id(piece.request): piece for piece in engine.run([*ahead, late]) if piece.finish_reason}
    assert ended[id(late)].finish_reason == "timeout" and ended[id(late)].tokens == []
    assert all(ended[id(request)].finish_reason == "length" for request in ahead)


def test_every_request_s_patience_is_its_own(engine):
    """One that wants its pieces soon gets them token by token; it costs the others nothing but that theirs are smaller too."""
    patient, hasty = Request(prompt(5), GREEDY), Request(prompt(7), GREEDY, seconds_per_piece=0.0)
    sizes = [len(piece.tokens) for piece in engine.run([patient, hasty]) if piece.request is hasty and piece.tokens]
    assert sizes[-4:] == [1] * 4
    assert max(len(piece.tokens) for piece in engine.run([Request(prompt(5), GREEDY)])) > 1


def test_a_job_s_fault_is_its_caller_s_and_jobs_take_turns_with_requests(engine, beside):
    seen = []

    def job(steps, fault=None):
        for _ in range(steps):
            seen.append(threading.current_thread().name)
            yield
        if fault:
            raise fault
        return steps

    with pytest.raises(ZeroDivisionError, match="its own"):
        engine.work(job(3, ZeroDivisionError("its own")))
    pieces = engine.run(fresh(BESIDE))
    next(pieces)
    assert engine.work(job(50)) == 50
    assert sum(piece.finish_reason is not None for piece in pieces) == len(BESIDE)
    assert set(seen) == {"gptoss_jax engine"}
    nothing_is_held(engine)


def test_sizes_that_no_memory_holds_are_refused_with_what_they_would_take():
    for options in ({"slots": 10**9}, {"cache_tokens": 10**13}, {"slots": 10**18}, {"cache_tokens": 10**18}):
        with pytest.raises(
            ValueError, match=r"must fit into memory; [\d,]+ slots and a cache of [\d,]+ tokens take [\d,.]+ GB of .* free; pass"
        ):
            make(**options)


@pytest.mark.parametrize("free", [False, True], ids=["token by token", "between pauses"])
def test_guided_requests_that_give_way_come_back_to_the_same_tokens(free):
    """Their tokens are known by then, and are taken in several dispatches: the device stops after each, and must be told to go on."""

    class Any(Form):
        def mask(self, out):
            return super().mask(out) and not free

    engine, long = make(cache_tokens=128), Sampling(temperature=0, max_tokens=60, ignore_eos=True, logprobs=0)
    wanted = everything(make(prefix_reuse=False), [Request(prompt(n, n), long) for n in (20, 25, 30)])
    for seconds in (0.0, None):
        requests = [Request(prompt(n, n), long, seconds_per_piece=seconds, constraint=Any()) for n in (20, 25, 30)]
        before = engine.stats.preemptions
        assert everything(engine, requests) == wanted
        assert engine.stats.preemptions > before
    nothing_is_held(engine)
