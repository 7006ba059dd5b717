"""What a load took: times of single requests to the columns of `vllm bench serve`, under its names. Arithmetic only."""

from collections.abc import Mapping, Sequence
import dataclasses
import itertools

import numpy as np

from gptoss_jax.quoting import quoted

COLUMNS = {
    "ttft": "Time to first token",
    "tpot": "Time per output token, without the first",
    "itl": "Inter-token latency",
    "e2el": "End-to-end latency",
}


@dataclasses.dataclass
class Timing:
    """One request. Seconds are of one clock, whichever.

    Attributes:
      began: when it was sent.
      arrivals: when each chunk with text came.
      ended: when its last chunk came.
      prompt_tokens, output_tokens: as the server says, or None where it does not.
      error: why it is not counted among the completed ones; "" where it is.
      text: all of the answer, reasoning and calls included.
    """

    began: float
    arrivals: list[float] = dataclasses.field(default_factory=list)
    ended: float = 0.0
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str = ""
    text: str = ""

    @property
    def tokens(self) -> int:
        """Of the answer; chunks where the server did not count."""
        return len(self.arrivals) if self.output_tokens is None else self.output_tokens

    @property
    def ttft(self) -> float:
        return self.arrivals[0] - self.began

    @property
    def e2el(self) -> float:
        return self.ended - self.began

    @property
    def itl(self) -> list[float]:
        """From one chunk to the next."""
        return [after - before for before, after in itertools.pairwise(self.arrivals)]

    @property
    def tpot(self) -> float | None:
        """None for an answer of one token."""
        return (self.e2el - self.ttft) / (self.tokens - 1) if self.tokens > 1 else None


def figures(
    timings: Sequence[Timing], seconds: float, *, goodput: Mapping[str, float] | None = None, percentiles: Sequence[float] = (99,)
) -> dict:
    """Columns as vLLM names them in its JSON, milliseconds and rates a second; and `worst_silence_ms` of a stream that had begun.

    Args:
      timings: of all requests, those that failed too.
      seconds: from the first request to the end of the last.
      goodput: most milliseconds, by column ("ttft", "tpot", "e2el"), of a request that counts as good.
    """
    done = [one for one in timings if not one.error]
    read, drawn = sum(one.prompt_tokens or 0 for one in done), sum(one.tokens for one in done)
    out = {
        "duration": seconds,
        "completed": len(done),
        "failed": len(timings) - len(done),
        "total_input_tokens": read,
        "total_output_tokens": drawn,
        "request_throughput": len(done) / seconds,
        "request_goodput": sum(_good(one, goodput) for one in done) / seconds if goodput else None,
        "output_throughput": drawn / seconds,
        "total_token_throughput": (read + drawn) / seconds,
        "max_concurrent_requests": most_at_once(done),
        "worst_silence_ms": max((1000 * gap for one in done for gap in one.itl), default=0.0),
    }
    values = {
        "ttft": [one.ttft for one in done],
        "tpot": [value for one in done if (value := one.tpot) is not None],
        "itl": [gap for one in done for gap in one.itl],
        "e2el": [one.e2el for one in done],
    }
    for name, some in values.items():
        some = 1000 * np.asarray(some or [0.0])
        out |= {f"mean_{name}_ms": float(some.mean()), f"median_{name}_ms": float(np.median(some)), f"std_{name}_ms": float(some.std())}
        out |= {f"p{q:g}_{name}_ms": float(np.percentile(some, q)) for q in percentiles}
    return out


def most_at_once(timings: Sequence[Timing]) -> int:
    """Requests under way; one that ends when another begins is not beside it."""
    moments = sorted([(one.began, 1) for one in timings] + [(one.ended, -1) for one in timings])
    return max(itertools.accumulate((change for _, change in moments), initial=0))


def table(found: Mapping, percentiles: Sequence[float] = (99,)) -> str:
    """What is printed, as vLLM prints it."""
    line = lambda name, value: f"{name + ':':44} {value:>12}"
    number = lambda name: f"{found[name]:,.2f}"
    out = [f"{' Serving benchmark ':=^57}"]
    out += [line("Successful requests", found["completed"]), line("Failed requests", found["failed"])]
    out += [line("Duration (s)", number("duration"))]
    out += [line("Total input tokens", found["total_input_tokens"]), line("Total generated tokens", found["total_output_tokens"])]
    out += [line("Request throughput (req/s)", number("request_throughput"))]
    out += [] if found["request_goodput"] is None else [line("Request goodput (req/s)", number("request_goodput"))]
    out += [line("Output token throughput (tok/s)", number("output_throughput"))]
    out += [line("Total token throughput (tok/s)", number("total_token_throughput"))]
    out += [line("Peak concurrent requests", found["max_concurrent_requests"])]
    out += [line("Worst silence of a running stream (ms)", number("worst_silence_ms"))]
    for name, title in COLUMNS.items():
        out.append(f"{f' {title} ':-^57}")
        kinds = {"mean": "Mean", "median": "Median", **{f"p{q:g}": f"P{q:g}" for q in percentiles}}
        out += [line(f"{said} {name.upper()} (ms)", number(f"{kind}_{name}_ms")) for kind, said in kinds.items()]
    return "\n".join([*out, "=" * 57])


def limits(words: Sequence[str]) -> dict[str, float]:
    """Goodput's limits, of "ttft:500" and the like. Raises ValueError where one is none."""
    out = {}
    for word in words:
        name, _, value = word.partition(":")
        try:
            limit = float(value)
        except ValueError:
            limit = -1.0
        if name not in ("ttft", "tpot", "e2el") or not limit >= 0:
            raise ValueError(f"goodput must be of ttft, tpot or e2el and milliseconds; got {quoted(word)}; pass some such as ttft:500.")
        out[name] = limit
    return out


def _good(one: Timing, most: Mapping[str, float]) -> bool:
    return all(1000 * (getattr(one, name) or 0.0) <= limit for name, limit in most.items())
