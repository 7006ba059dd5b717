"""The bits of two hundred requests of all kinds: recorded on one commit, compared on another.

    python -m benchmarks.faults.bits record FILE     # on the commit before
    python -m benchmarks.faults.bits compare FILE    # on the one after: what differs, and status 1, or that nothing does

Requests are drawn by a seed (`asked`) and answered by nano in engines of several settings, some side by side and some alone, through
`llm.run`, `generate`, `chat` and `stream`; then some of the answers are replayed and scored. Recorded are tokens, texts, reasons, and
log-probabilities as hexadecimal floats. Bits are promised on one machine: a file from another one, or of another jax, is refused.
"""

from collections.abc import Iterator, Sequence
import hashlib
import json
from pathlib import Path
import platform
import time

from absl import app, flags
import numpy as np

from benchmarks import device
from benchmarks.faults import asked as asking
from benchmarks.faults.asked import SETTINGS, Asked
import gptoss_jax as gj

REQUESTS, SEED = 200, 0
_SHOWN = 10  # differences that are printed


def about() -> dict[str, str]:
    """What the bits depend on besides the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor())
    told = device.about()
    return {"processor": model, "device": told["device"], "jax": told["jax"], "jaxlib": told["jaxlib"]}


def answers(model: gj.Model, count: int = REQUESTS, seed: int = SEED) -> tuple[dict[str, dict], dict[str, int]]:
    """What each request is answered, by a name for it; and how often a request gave way, by setting."""
    drawn = asking.draw(count, seed)
    found, gave_way = {}, {}
    for setting, options in SETTINGS.items():
        mine = [one for one in drawn if one.setting == setting]
        llm = gj.LLM(model, **options)
        llm.prepare()
        for key, answer in _asked(llm, mine):
            found[f"{setting} {key}"] = answer
        for key, answer in _looked_at_again(llm, mine, found):
            found[f"{setting} {key}"] = answer
        gave_way[setting] = llm.engine.stats.preemptions
    return found, gave_way


def _asked(llm: gj.LLM, mine: Sequence[Asked]) -> Iterator[tuple[str, dict]]:
    """Names and answers: what has its own call before what is asked side by side."""
    for one in mine:
        task = one.task
        if one.way == "run":
            continue
        told = {"priority": task.priority, "response_format": task.response_format}
        chat = {"reasoning_effort": task.reasoning_effort, "tools": task.tools} | told | dict(task.options)
        if one.way == "generate":
            made = llm.generate(task.prompt, task.sampling, n=task.n, **told)
            for i, answer in enumerate(made if task.n > 1 else [made]):
                yield f"{task.key}.{i}", of(answer)
        elif one.way == "chat":
            yield f"{task.key}.0", of(llm.chat(task.messages, task.sampling, **chat))
        else:
            stream = llm.stream(task.messages, task.sampling, **chat)
            shown: dict[str, str] = {}
            for piece in (one for one in stream if one.text):
                shown[str(piece.channel)] = shown.get(str(piece.channel), "") + piece.text
            yield f"{task.key}.0", of(stream.reply) | {"shown": shown}
    for outcome in llm.run(one.task for one in mine if one.way == "run"):
        if outcome.error:
            raise RuntimeError(f"no request may be refused; request {outcome.task.key} was: {outcome.error}")
        for i, answer in enumerate(outcome.answers):
            yield f"{outcome.task.key}.{i}", of(answer)


def _looked_at_again(llm: gj.LLM, mine: Sequence[Asked], found: dict[str, dict]) -> Iterator[tuple[str, dict]]:
    """Every third request's first answer: replayed, scored after its prompt, and its prompt's own log-probabilities."""
    for one in mine[::3]:
        task = one.task
        more = {"reasoning_effort": task.reasoning_effort, "tools": task.tools} | dict(task.options)
        prompt = task.prompt if task.messages is None else llm.render(task.messages, **more)
        tokens = found[f"{one.setting} {task.key}.0"]["tokens"]
        yield f"{task.key} replayed", of(llm.replay(prompt, tokens, top_logprobs=task.key % 3))
        scored, again = llm.score(prompt, [tokens, tokens[: 1 + len(tokens) // 2]])
        read = llm.prompt_logprobs(prompt, top=task.key % 4)
        told = {"scored": hexed(scored), "again": hexed(again), "prompt": hexed(read.logprobs), "top": _top(read.top_logprobs)}
        yield f"{task.key} scored", told


def of(answer: gj.Completion | gj.Reply) -> dict:
    """What is recorded of an answer."""
    told = {"tokens": list(map(int, answer.tokens)), "reason": answer.finish_reason, "text": answer.text}
    told |= {"logprobs": None if answer.logprobs is None else hexed(answer.logprobs), "top": _top(answer.top_logprobs)}
    if isinstance(answer, gj.Reply):
        calls = [[call.name, call.arguments] for call in answer.tool_calls]
        told |= {"reasoning": answer.reasoning, "calls": calls, "malformed": answer.malformed}
    if answer.routed_experts is not None:
        told["experts"] = hashlib.blake2b(np.ascontiguousarray(answer.routed_experts).tobytes(), digest_size=16).hexdigest()
    return told


def hexed(numbers) -> list[str]:
    """Floats without rounding."""
    return [float(number).hex() for number in numbers]


def _top(tops) -> str | None:
    """A digest of the most probable tokens: twenty for each token would fill the file."""
    if tops is None:
        return None
    text = json.dumps([[(int(token), float(value).hex()) for token, value in top.items()] for top in tops])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def differences(before: dict[str, dict], now: dict[str, dict]) -> list[str]:
    """A sentence for each answer that is not the same."""
    lines = [f"{name}: not asked before" for name in now if name not in before]
    for name, was in before.items():
        if name not in now:
            lines.append(f"{name}: not answered")
            continue
        for key in was.keys() | now[name].keys():
            one, other = was.get(key), now[name].get(key)
            if one != other:
                lines.append(f"{name}: {key} was {str(one)[:60]}, is {str(other)[:60]}{_where(one, other)}")
    return lines


def _where(one, other) -> str:
    if not (isinstance(one, list) and isinstance(other, list)):
        return ""
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return f" (of {len(one)} and {len(other)}, the first at {at} differs)"


def define_flags(to: flags.FlagValues) -> None:
    """Adds this program's flags to a set of them."""
    flags.DEFINE_string("checkpoint", "nano", "Checkpoint directory, with nano's vocabulary.", to)
    flags.DEFINE_integer("requests", REQUESTS, "How many.", lower_bound=1, flag_values=to)
    flags.DEFINE_integer("seed", SEED, "Of the requests.", flag_values=to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> int:
    if len(argv) != 3 or argv[1] not in ("record", "compare"):
        raise app.UsageError("say what to do with which file: record FILE, or compare FILE")
    path, asked = Path(argv[2]), {"requests": given.requests, "seed": given.seed}
    head = about() | asked
    before = json.loads(path.read_text()) if argv[1] == "compare" else None
    if before is not None and before["about"] != head:
        raise app.UsageError(f"a record must be compared on the machine and with the flags it was made with: {before['about']}; got {head}")
    began = time.perf_counter()
    now, gave_way = answers(gj.load(given.checkpoint, progress=False), given.requests, given.seed)
    tokens = sum(len(one.get("tokens", ())) for one in now.values())
    seconds = time.perf_counter() - began
    print(f"{given.requests} requests, {len(now)} answers of {tokens:,} tokens in {seconds:.1f} s; gave way: {gave_way}")
    if before is None:
        path.write_text(json.dumps({"about": head, "answers": now}, ensure_ascii=False))
        print(f"recorded in {path}, {path.stat().st_size / 1e6:.2f} MB")
        return 0
    differ = differences(before["answers"], now)
    print("\n".join(differ[:_SHOWN] + [f"... and {len(differ) - _SHOWN} more"] * (len(differ) > _SHOWN)) or "all the same to the bit")
    return 1 if differ else 0


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    app.run(main)
