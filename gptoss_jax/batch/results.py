"""Outcomes and refusals to lines of the output, in the form of the request; the same bytes whenever they are made. Knows no jax."""

from collections.abc import Mapping, Sequence
import hashlib

from gptoss_jax import strict_json
from gptoss_jax.batch.lines import Line, Request
from gptoss_jax.openai import errors, writing
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.told import Told
from gptoss_jax.openai.writing import spelling, usage
from gptoss_jax.turns.builder import SAID


def answered(request: Request, outcomes: Sequence, tokenizer) -> bytes:
    """The line of a request that was answered.

    Args:
        outcomes: an `Outcome` without error for each of its tasks.
        tokenizer: spells the tokens of log-probabilities; may be None where there are none.
    """
    line = request.line
    if line.form == "plain":
        return strict_json.dumps(_plain(request, outcomes[0]))
    told = Told(_digest(line), model=request.body.get("model", ""), as_batch=True)
    return strict_json.dumps(_openai(line, 200, writing.body(request.asked, told, outcomes, tokenizer)))


def refused(line: Line, refusal: Refused) -> bytes:
    """The line of what cannot be answered, or of what failed on the way."""
    if line.form == "plain":
        where = {"id": line.id} if line.id is not None else {"id": None, "line": line.number}
        return strict_json.dumps(where | {"error": {"code": refusal.code, "message": str(refusal)}})
    return strict_json.dumps(_openai(line, refusal.status, errors.body_of(refusal)))


def _openai(line: Line, status: int, body: Mapping) -> dict:
    digest = _digest(line)
    response = {"status_code": status, "request_id": f"req_{digest}", "body": body}
    return {"id": f"batch_req_{digest}", "custom_id": line.id, "response": response, "error": None}


def _plain(request: Request, outcome) -> dict:
    answers = [_answer(request, answer) for answer in outcome.answers]
    written = usage.written([outcome])
    spent = {"prompt_tokens": outcome.prompt_tokens, "completion_tokens": written, "total_tokens": outcome.prompt_tokens + written}
    several = {"choices": answers} if len(answers) != 1 else answers[0]
    return {"id": request.line.id, **several, "usage": spent, "error": None}


def _answer(request: Request, answer) -> dict:
    """An answer to messages has reasoning and calls, one to a prompt does not."""
    out = {"text": answer.text}
    if "messages" in request.body:
        calls = [{"name": call.name, "arguments": call.arguments} for call in answer.tool_calls]
        out |= {"reasoning": answer.reasoning, "tool_calls": calls}
    out["finish_reason"] = answer.finish_reason
    if request.body.get("return_tokens"):
        out["tokens"] = list(answer.tokens)
    said = {name: values for name in SAID if (values := getattr(answer, name)) is not None}
    return out | {name: [_finite(value) for value in values] for name, values in said.items()}


def _finite(said: float | Mapping[int, float]) -> float | dict[str, float]:
    return {str(token): spelling.finite(x) for token, x in said.items()} if isinstance(said, Mapping) else spelling.finite(said)


def _digest(line: Line) -> str:
    return hashlib.blake2b(line.name.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
