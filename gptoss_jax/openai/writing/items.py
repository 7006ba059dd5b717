"""The items of a Response: one for each message of the turn, in order. Knows no jax."""

import dataclasses
from typing import Literal, get_args

from gptoss_jax.openai.told import PREFIXES, Told
from gptoss_jax.turns.reply import ReplyPiece

Kind = Literal["reasoning", "message", "function_call"]
_PHASES = {True: "final_answer", False: "commentary"}


@dataclasses.dataclass
class Item:
    """An item on its way.

    Attributes:
        id: `rs_{id}`, `msg_{id}`, `fc_{id}_0`; of several thoughts and texts the second is `rs_{id}_1`.
        place: among the items.
        message: of the turn's messages, which one it is made of.
        call_id, name: of a call.
        phase: of a message; None for none to be named.
        full: whether to say what results of batches have never had.
        texts, logprobs: as they came.
    """

    kind: Kind
    id: str
    place: int
    message: int
    call_id: str = ""
    name: str = ""
    phase: str | None = None
    full: bool = True
    texts: list[str] = dataclasses.field(default_factory=list)
    logprobs: list[dict] = dataclasses.field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def part(self) -> dict:
        """Its content, with what has come of it; a call has none."""
        if self.kind == "reasoning":
            return {"type": "reasoning_text", "text": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": list(self.logprobs)}

    def shown(self, status: Literal["in_progress", "completed", "incomplete"]) -> dict:
        """As it stands in a Response; in progress nothing has come yet."""
        content = [] if status == "in_progress" or self.kind == "function_call" else [self.part()]
        if self.kind == "reasoning":
            out = {"id": self.id, "type": "reasoning", "summary": [], "content": content}
            return out | {"status": status} if self.full else out
        if self.kind == "function_call":
            ids = {"id": self.id, "call_id": self.call_id}
            return {**ids, "type": "function_call", "name": self.name, "arguments": self.text, "status": status}
        out = {"id": self.id, "type": "message", "role": "assistant", "status": status, "content": content}
        return out | {"phase": self.phase} if self.phase else out


class Numbering:
    """Makes the items of one Response, and their ids."""

    def __init__(self, told: Told):
        self._told, self._counts = told, dict.fromkeys(get_args(Kind), 0)

    def item(self, piece: ReplyPiece) -> Item:
        """The item of the message that a piece begins."""
        kind: Kind = "function_call" if piece.call is not None else "reasoning" if piece.channel == "analysis" else "message"
        number, place = self._counts[kind], sum(self._counts.values())
        self._counts[kind] += 1
        own = f"_{number}" if number or kind == "function_call" else ""
        out = Item(kind, f"{PREFIXES[kind]}_{self._told.id}{own}", place, piece.message, full=not self._told.as_batch)
        if kind == "function_call":
            out.call_id, out.name = f"call_{self._told.id}{own}", piece.call
        elif kind == "message" and (out.full or not piece.answers):
            out.phase = _PHASES[piece.answers]
        return out
