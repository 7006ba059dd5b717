"""How a body is to be read, and what it asks for. Data only."""

from collections.abc import Mapping, Sequence
import dataclasses
import hashlib
from typing import Any, Literal, Protocol

from gptoss_jax.turns.task import Task

Endpoint = Literal["chat", "responses", "completions"]


@dataclasses.dataclass(frozen=True)
class Defaults:
    """For requests that say nothing.

    Attributes:
        seed: a request without a seed has one that comes from this and its name; None for one that is drawn.
    """

    temperature: float = 1.0
    max_tokens: int | None = None
    reasoning_effort: str = "medium"
    seed: int | None = 0

    def seed_of(self, name: str) -> int | None:
        """The same whenever it is asked, so that a job that goes on gives the answers that it would have given."""
        if self.seed is None:
            return None
        digest = hashlib.blake2b(f"{self.seed} {name}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") >> 2  # the seeds after it are those of further answers


@dataclasses.dataclass(frozen=True)
class Reading:
    """What those who read bodies differ in.

    Attributes:
        live: whether a client waits at the other end: then it may stream, and responses may be stored and go on from each other.
        strict: whether fields that are not known are refused; else they are ignored, and `Asked.ignored` names them.
        time_limit: most seconds of a request, or None.
    """

    defaults: Defaults = Defaults()
    live: bool = False
    strict: bool = True
    time_limit: float | None = None


class Earlier(Protocol):
    """Responses that are kept, for bodies that go on from one."""

    def items(self, response_id: str) -> Sequence[Mapping] | None:
        """All items up to a response's last: its input, that of those it went on from, its output. None where it is not kept."""

    def item(self, item_id: str) -> Mapping | None:
        """An item of any of them."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """A body that was read.

    Attributes:
        tasks: what is to be done: one, or one for each prompt of a body of /v1/completions.
        given: the body's fields that are known here and not null, as they came.
        ignored: names of fields that are not known here, "messages[0].mood" for one further in, and of wishes that nothing comes of.
        name: tells the request from all others.
        places: what a part of a Task is called in the body, "input[3]" of "messages[2]", where it is another name.
        items: of /v1/responses, its input, references to earlier items followed.
    """

    endpoint: Endpoint
    tasks: tuple[Task, ...]
    given: Mapping[str, Any]
    ignored: tuple[str, ...] = ()
    name: str = ""
    places: Mapping[str, str] = dataclasses.field(default_factory=dict)
    items: tuple[Mapping, ...] = ()

    @property
    def stream(self) -> bool:
        return bool(self.given.get("stream"))

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with what it has cost."""
        return bool((self.given.get("stream_options") or {}).get("include_usage"))

    @property
    def echo(self) -> bool:
        """Whether a prompt is to come back before its continuation, with its log-probabilities where there are any."""
        return self.endpoint == "completions" and bool(self.given.get("echo"))

    @property
    def draws(self) -> bool:
        """Whether tokens are to be drawn; else nothing but the prompt is wanted, though the tasks are there."""
        return not (self.echo and self.given.get("max_tokens") == 0)
