"""The places of adapters: who has which, who holds on to it, when there is none left."""

from types import SimpleNamespace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
import pytest

from gptoss_jax.engine.scheduling.adapters import Adapters, check_name

PLACES, NAMES = 3, ["a", "b", "c", "d"]


def waiting(name):
    return SimpleNamespace(request=SimpleNamespace(adapter=name), adapter=None)


class Places(RuleBasedStateMachine):
    """Whatever comes: two adapters never share a place, and one that a request holds is never written to."""

    def __init__(self):
        super().__init__()
        self.adapters, self.running, self.written, self.count = Adapters(PLACES), [], {}, 0

    def write(self, place):
        assert place not in {live.adapter.place for live in self.running}
        assert place not in {one.place for one in self.adapters.attached.values()}
        self.count += 1
        self.written[place] = self.count

    @rule(name=st.sampled_from(NAMES))
    def attach(self, name):
        before = dict(self.adapters.attached)
        held = {live.adapter.place for live in self.running} | {one.place for other, one in before.items() if other != name}
        try:
            self.adapters.attach(name, 4, ("q_proj",), self.write)
        except ValueError as error:
            assert len(held | ({before[name].place} if name in before else set())) == PLACES and "all 3 are taken" in str(error)
            assert self.adapters.attached == before
        else:
            assert self.adapters.attached[name] != before.get(name)

    @rule(name=st.sampled_from(NAMES))
    def detach(self, name):
        if name in self.adapters.attached:
            self.adapters.detach(name)
        else:
            with pytest.raises(ValueError, match="adapter must be the name of one that is attached"):
                self.adapters.detach(name)

    @rule(name=st.sampled_from(NAMES))
    def begin(self, name):
        live = waiting(name)
        why = self.adapters.lend(live)
        assert (why is None) == (name in self.adapters.attached) == (live.adapter is not None)
        if live.adapter is not None:
            live.content = self.written[live.adapter.place]
            self.running.append(live)
            assert self.adapters.lend(live) is None  # again, after it had to give way: it keeps what it has

    @rule(number=st.integers(0, 9))
    def end(self, number):
        if self.running:
            self.adapters.give_back(self.running.pop(number % len(self.running)))

    @invariant()
    def what_is_held_stays_as_it_was(self):
        assert all(self.written[live.adapter.place] == live.content for live in self.running)
        places = [one.place for one in self.adapters.attached.values()]
        assert len(set(places)) == len(places)


Places.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None, derandomize=True)
TestPlaces = Places.TestCase


def test_what_fails_while_it_is_written_leaves_no_half():
    adapters = Adapters(1)
    adapters.attach("a", 4, ("q_proj",), lambda place: None)

    def fail(place):
        raise MemoryError

    with pytest.raises(MemoryError):
        adapters.attach("a", 4, ("q_proj",), fail)
    assert not adapters.attached and adapters.lend(waiting("a"))
    adapters.attach("a", 4, ("q_proj",), lambda place: None)
    assert list(adapters.attached) == ["a"]


def test_salts_differ_and_none_is_for_none():
    adapters, salts = Adapters(2), set()
    for _ in range(3):
        for name in ("a", "b"):
            adapters.attach(name, 4, ("q_proj",), lambda place: None)
            salts.add(adapters.attached[name].salt)
    assert len(salts) == 6 and b"" not in salts
    live = waiting(None)
    assert adapters.lend(live) is None and live.adapter is None


@pytest.mark.parametrize("name", ["", " ", None, 5, "a\nb", "x" * 257, b"a", ["a"]])
def test_names_that_are_none(name):
    with pytest.raises(ValueError, match="an adapter's name must be a text that can be printed") as error:
        check_name(name)
    assert len(str(error.value)) < 400


def test_a_full_house_says_who_is_there():
    adapters = Adapters(2)
    for name in ("a", "b"):
        adapters.attach(name, 4, ("q_proj",), lambda place: None)
    with pytest.raises(ValueError, match="all 2 are taken: attached are 'a', 'b'; detach one, or make the LLM with more"):
        adapters.attach("c", 4, ("q_proj",), lambda place: None)
    adapters.lend(waiting("a"))
    with pytest.raises(ValueError, match="attached are 'a', 'b'; wait until the requests with it have ended, or"):
        adapters.attach("a", 4, ("q_proj",), lambda place: None)
    adapters.detach("a")
    with pytest.raises(ValueError, match="attached are 'b', and 1 that were changed or detached, .*; wait until those have"):
        adapters.attach("c", 4, ("q_proj",), lambda place: None)
