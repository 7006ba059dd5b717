"""What the emulator would not notice it could not vouch for: every kernel spoiled on purpose is found out."""

import dataclasses
import functools

from mutations import MUTATIONS
import pytest

from pallas_kernels import aot, emulator
from pallas_kernels.bench import small
from pallas_kernels.emulator import examine, launch

pytestmark = pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))

SCHEDULES = [(0, "fair"), (3, "late")]


class Bench:
    """A call, compiled once, whose kernels may be spoiled anew for each run."""

    def __init__(self, op: str, name: str):
        self.case = small.cases([op], [name])[0]
        arguments = self.case.arguments()
        with self.case.tuned():
            self.emulated = emulator.Emulated(self.case.run, *arguments, change=lambda *kernel: self.change(*kernel))
        self.truth = examine.truth(self.case, arguments)

    def judge(self, change) -> examine.Outcome:
        self.change, self.done = change, set()
        return examine.judge(self.case, self.emulated, *self.truth, SCHEDULES)


@functools.cache
def bench(op: str, name: str) -> Bench:
    """Only what is right as it is may be spoiled."""
    made = Bench(op, name)
    outcome = made.judge(lambda compiled, host: (launch.load(compiled)[0], host))
    assert outcome.right, outcome
    return made


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    yield
    bench.cache_clear()


def how(outcome: examine.Outcome) -> list[str]:
    """How a wrong kernel was noticed."""
    wrong = [] if outcome.accurate else [f"a wrong result, error {outcome.worst[0]:.2g}"]
    return [*outcome.findings, *wrong, *([] if outcome.same else ["other bits under another schedule"])]


@pytest.mark.quick("add_norm: no wait for a copy", "add_norm: no fence.proxy.async")
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: f"{mutation.kernel}: {mutation.what}")
def test_every_mutation_is_noticed(mutation):
    assert how(bench(mutation.op, mutation.name).judge(mutation.change)), "it went unnoticed"


def test_what_changes_nothing_is_an_error():
    """Of the case that is compiled for the test above."""
    nothing = next(mutation for mutation in MUTATIONS if mutation.kernel == "add_norm")
    for spoils in ({"text": lambda text: text}, {"text": None, "tensor_map": lambda described: described}):
        mutation = dataclasses.replace(nothing, **spoils)
        with pytest.raises(Exception, match="is changed"):
            bench(mutation.op, mutation.name).judge(mutation.change)
