"""Responses that are kept in memory, so that others can go on from them; the oldest are forgotten."""

from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
import dataclasses
import json

from gptoss_jax.openai.reading import gone_on


@dataclasses.dataclass(frozen=True)
class Kept:
    """A response.

    Attributes:
        body: as it was answered.
        given: items that it was asked with, those of earlier responses apart.
        items: all up to its last: of those it went on from, its input, its output; one that was continued is one with what came.
        size: bytes of all this as JSON; items that it shares with others are counted with each of them.
    """

    body: Mapping
    given: tuple[Mapping, ...]
    items: tuple[Mapping, ...]
    size: int


class Stored:
    """Up to so many responses, of so many bytes in all. An `openai.asked.Earlier`."""

    def __init__(self, most: int, most_bytes: int):
        self.most, self.most_bytes, self.bytes = most, most_bytes, 0
        self._kept: OrderedDict[str, Kept] = OrderedDict()
        self._places: dict[str, list[tuple[str, Mapping]]] = {}  # of an item: the responses that hold it

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, response_id: str) -> Kept | None:
        return self._kept.get(response_id)

    def items(self, response_id: str) -> Sequence[Mapping] | None:
        kept = self._kept.get(response_id)
        return None if kept is None else kept.items

    def item(self, item_id: str) -> Mapping | None:
        places = self._places.get(item_id)
        return places[-1][1] if places else None

    def keep(self, kept: Kept, *, own: Container[object] = ()) -> None:
        """Keeps a response.

        Args:
            own: ids that its client gave to items. Another client may give the same ones to others, so nothing is found by them, but
                items that were known by them before.
        """
        name = kept.body["id"]
        self.forget(name)
        if kept.size > self.most_bytes:
            return
        self._kept[name] = kept
        self.bytes += kept.size
        known = [item for item in kept.given if item.get("id") not in own or self.item(item["id"]) == item]
        for item in (*known, *kept.body["output"]):
            if isinstance(item.get("id"), str):
                self._places.setdefault(item["id"], []).append((name, item))
        while len(self._kept) > self.most or self.bytes > self.most_bytes:
            self.forget(next(iter(self._kept)))

    def forget(self, response_id: str) -> bool:
        """Whether it was kept."""
        kept = self._kept.pop(response_id, None)
        if kept is None:
            return False
        self.bytes -= kept.size
        for item in (*kept.given, *kept.body["output"]):
            name = item.get("id")
            if isinstance(name, str) and name in self._places:
                left = [place for place in self._places[name] if place[0] != response_id]
                self._places[name] = left
                if not left:
                    del self._places[name]
        return True


def made(body: Mapping, given: Sequence[Mapping], earlier: Sequence[Mapping] = (), *, continued: bool = False) -> Kept:
    """What is kept of a response, which takes as long as its items are many; in any thread.

    Args:
        body: of it.
        given: items of its input.
        earlier: those of the responses that it goes on from.
        continued: whether the output goes on in the middle of the last item before it.
    """
    before, output = (*earlier, *given), body["output"]
    items = gone_on(before, output) if continued else (*before, *output)
    return Kept(body, tuple(given), items, _size(body) + sum(map(_size, before)))


def _size(value: Mapping) -> int:
    return len(json.dumps(value))
