"""Small legal calls of every kernel, chosen so that whatever a kernel's body can do is done in one: for the emulator, to which the gpt-oss
shapes of `pallas_kernels.bench` are too large.

Each op's own room says what its calls are; here is the list of these rooms, and what a call is.
"""

from collections.abc import Callable, Iterable
import contextlib
import dataclasses
import importlib
from types import ModuleType

from pallas_kernels import dispatch
from pallas_kernels.bench import named

_OPS = ("projection.small", "attention.small", "routing.small", "moe.small", "norm.small")
MODULES = tuple(f"pallas_kernels.{module}" for module in _OPS)


@dataclasses.dataclass(frozen=True)
class Small:
    """One op at one small shape. Its functions give zeros where a result may be anything, so that all of one may be compared.

    Attributes:
      op: as in `bench.Case`, such as "moe.decode".
      name: such as "5 tokens, 960 columns"; no two of an op have one.
      tokens: rows of a step, or of the longest prompt.
      run: the kernels; a function of the arguments that can be jitted.
      xla: XLA's form of the same, in the kernels' dtypes: what their error is held against.
      reference: the same in float32.
      arguments: () -> tuple of arrays, the same ones at every call.
      tables: (module, attribute, value), what tuning tables hold while the kernels are traced.
    """

    op: str
    name: str
    tokens: int
    run: Callable
    xla: Callable
    reference: Callable
    arguments: Callable[[], tuple]
    tables: tuple[tuple[ModuleType, str, object], ...] = ()

    @contextlib.contextmanager
    def tuned(self):
        """Within this, kernels that are traced take `tables`."""
        before = [(module, name, getattr(module, name)) for module, name, _ in self.tables]
        dispatch.forget()
        try:
            for module, name, value in self.tables:
                setattr(module, name, value)
            yield
        finally:
            for module, name, value in before:
                setattr(module, name, value)
            dispatch.forget()


def cases(ops: Iterable[str] = (), names: Iterable[str] = (), tokens: Iterable[int] = ()) -> list[Small]:
    """All calls, or those whose op begins with one of `ops` and whose name has one of `names` (`named.chosen`).

    Args:
      ops, names: see above.
      tokens: where given, instead of the calls that there are, each op's plain one of so many tokens.

    Raises:
      ValueError: no call is left.
    """
    modules = [importlib.import_module(module) for module in MODULES]
    tokens = tuple(tokens)
    plain = lambda module: [case for number in tokens for case in module.plain(number)]
    every = [case for module in modules for case in (plain(module) if tokens else module.cases())]
    return named.chosen(every, ops, names, "small call")
