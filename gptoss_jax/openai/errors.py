"""What is said of a request that cannot be answered: a sentence, a code, the field to blame; OpenAI's error object of them."""

from collections.abc import Sequence

from gptoss_jax.quoting import MOST, quoted
from gptoss_jax.turns.task import Outcome

INTERNAL = "internal_error"
_KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 500: "server_error", 503: "server_error"}


class Refused(ValueError):
    """A request that cannot be answered.

    Attributes:
        code: for programs, such as "unknown_field".
        field: which one is to blame, or None.
        status: of HTTP.
    """

    def __init__(self, message: str, code: str = "invalid_request", field: str | None = None, *, status: int | None = None):
        super().__init__(message)
        self.code, self.field = code, field
        self.status = status or (500 if code == INTERNAL else 400)


def refusal_of(error: Exception) -> Refused:
    """What is said to a request that raised this. Raises what is not the request's: there is no memory."""
    if isinstance(error, MemoryError):
        raise error
    if isinstance(error, Refused):
        return error
    if isinstance(error, ValueError):
        return Refused(str(error)[: 5 * MOST])
    return Refused(
        f"a request must not break what answers it; this one raised {quoted(error)}; the others went on; send it again, and report it if "
        "that does not help.",
        INTERNAL,
    )


def of_outcomes(outcomes: Sequence[Outcome]) -> Refused | None:
    """Why a request was not answered, where a task of it was refused or failed on the way."""
    for outcome in outcomes:
        if outcome.error is not None:
            return Refused(outcome.error, INTERNAL if outcome.failed else "invalid_request")
    return None


def body_of(refusal: Refused) -> dict:
    """{"error": {"message", "type", "param", "code"}}, all four of them."""
    kind = _KINDS.get(refusal.status, "invalid_request_error")
    return {"error": {"message": str(refusal), "type": kind, "param": refusal.field, "code": refusal.code}}
