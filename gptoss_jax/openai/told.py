"""What those who write an object say of it, so that the same answer makes the same bytes whenever they want it to. Data only."""

from collections.abc import Mapping
import dataclasses
from typing import Any

PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}  # of the ids of items


@dataclasses.dataclass(frozen=True)
class Told:
    """Of one object.

    Attributes:
        id: what tells it from all others; the object's id and those of its parts are made of it: `chatcmpl-{id}`, `call_{id}_0_0`.
        created: seconds since 1970; 0 in a batch.
        completed: likewise, or None.
        model: as it is to be called; "" for none.
        cached: whether to say how many tokens of the prompt were found in kept prefixes, which depends on what else ran.
        echo: further fields of a Response that are to come back as they are, such as previous_response_id.
        as_batch: whether to leave out what results of batches have never had (`reasoning` beside `reasoning_content`, the phase of an
            answer, fields of a Response that say nothing here), so that a job that goes on writes the bytes that it would have written.
    """

    id: str
    created: int = 0
    completed: int | None = None
    model: str = ""
    cached: bool = False
    echo: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    as_batch: bool = False
