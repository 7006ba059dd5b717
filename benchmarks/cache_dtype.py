"""What a cache of keys and values in eight bits changes: answers to held-out questions, and log-probabilities of given tokens.

    python -m benchmarks.cache_dtype --per_task=20

Asks nano held-out questions greedily in bfloat16, once with each cache: how many answers are right, how many turns are the same to the
token. Then turns are drawn at temperature 1 with the exact cache, and scored with both behind their prompts. The mean difference of a drawn
token's log-probability estimates the divergence KL(bfloat16 || eight bits) a token. Prompts, which nano was not taught to write, are told
of apart. Beside it stands what bfloat16 itself changes: the same tokens with weights, products and cache in float32.
"""

import json

from absl import app, flags
import numpy as np

from checkpoints.nano_evaluation import MAX_TOKENS, grade, questions
import gptoss_jax as gj
from gptoss_jax.research import scoring
from gptoss_jax.tokenizer import STOP

_CHECKPOINT = flags.DEFINE_string("checkpoint", "nano", "Checkpoint directory, or 'nano', the bundled one.")
_PER_TASK = flags.DEFINE_integer("per_task", 20, "Questions of each task at each effort.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the questions.")
_SLOTS = flags.DEFINE_integer("slots", 32, "Questions answered side by side.", lower_bound=1)


def answers(exact: gj.LLM, small: gj.LLM, examples) -> dict[str, int]:
    """How many greedy answers are right, and the same, with the two caches."""
    pairs = list(zip(grade(exact, examples), grade(small, examples), strict=True))
    return {
        "questions": len(pairs),
        "right": sum(a.right for a, _ in pairs),
        "right_fp8": sum(b.right for _, b in pairs),
        "only_exact_right": sum(a.right and not b.right for a, b in pairs),
        "only_fp8_right": sum(b.right and not a.right for a, b in pairs),
        "same_turns": sum(a.text == b.text for a, b in pairs),
        "same_answers": sum(a.given == b.given for a, b in pairs),
    }


def differences(exact: gj.LLM, others: dict[str, gj.LLM], examples) -> dict[str, dict[str, float]]:
    """Log-probabilities of the tokens of prompts, and of turns drawn at temperature 1 with the exact cache."""
    options = lambda e: {"reasoning_effort": e.effort, "tools": list(e.tools), "instructions": e.instructions, "current_date": e.date}
    prompts = [exact.render(list(e.messages), **options(e)) for e in examples]
    stops = tuple(exact.tokenizer.special[name] for name in STOP)
    samplings = [gj.Sampling(seed=i, max_tokens=MAX_TOKENS, stop_token_ids=stops) for i in range(len(prompts))]
    sequences = [[*prompt, *one.tokens] for prompt, one in zip(prompts, exact.generate(prompts, samplings), strict=True)]
    ends = [len(prompt) - 1 for prompt in prompts]
    parts = {"prompts": [slice(0, end) for end in ends], "turns": [slice(end, None) for end in ends]}
    joined = lambda arrays, slices: np.concatenate([x[part] for x, part in zip(arrays, slices, strict=True)]).astype(np.float64)
    wanted, rows = _scores(exact, sequences), {}
    for name, llm in others.items():
        got = _scores(llm, sequences)
        rows |= {f"{part}, {name}": _summary(joined(wanted, slices), joined(got, slices)) for part, slices in parts.items()}
    return rows


def _scores(llm: gj.LLM, sequences: list[list[int]]) -> list[np.ndarray]:
    engine = llm.engine
    scored = scoring.score(engine.params, engine.config, sequences, sizes=engine.sizes, cache_dtype=engine.programs.cache_dtype)
    return [one.logprobs for one in scored]


def _summary(exact: np.ndarray, small: np.ndarray) -> dict[str, float]:
    off = exact - small
    return {
        "tokens": off.size,
        "mean_logprob": float(exact.mean()),
        "mean_difference": float(off.mean()),
        "standard_error": float(off.std() / np.sqrt(off.size)),
        "mean_magnitude": float(np.abs(off).mean()),
        "percentile_99": float(np.percentile(np.abs(off), 99)),
    }


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    models = {dtype: gj.load(_CHECKPOINT.value, dtype=dtype, progress=False) for dtype in ("bfloat16", "float32")}
    make = lambda weights, cache=None: gj.LLM(models[weights], slots=_SLOTS.value, context=512, chunk=192, cache_dtype=cache)
    exact, small = make("bfloat16"), make("bfloat16", "float8_e4m3fn")
    examples = questions(_PER_TASK.value, _SEED.value)
    told = answers(exact, small, examples)
    print(f"{told['questions']} held-out questions, greedily: {told['right']} answers are right with the cache in bfloat16,")
    print(f"{told['right_fp8']} in float8_e4m3fn; {told['same_turns']} turns are the same to the token.")
    logprobs = differences(exact, {"float8_e4m3fn cache": small, "all in float32": make("float32")}, examples)
    print("\n| | tokens | mean logprob | mean difference | standard error | mean magnitude | 99th percentile |\n|---|" + "---:|" * 6)
    for name, row in logprobs.items():
        print(f"| {name} | {row['tokens']} | " + " | ".join(f"{value:.3g}" for value in list(row.values())[1:]) + " |")
    print(json.dumps(told | logprobs))


if __name__ == "__main__":
    app.run(main)
