"""What a cache of keys and values in eight bits changes: answers to held-out questions, and log-probabilities of given tokens.

    python -m benchmarks.cache_dtype --per_task=10

Asks nano held-out questions greedily, once with each cache: how many answers are right, how many turns are the same to the token. Then
turns are drawn at temperature 1 with the exact cache, and scored with both behind their prompts. The mean difference of a drawn token's
log-probability estimates the divergence KL(exact || eight bits) a token. Prompts, of which a model is less sure, are told of apart.
"""

import json

from absl import app, flags
import numpy as np

from checkpoints.nano_evaluation import MAX_TOKENS, grade, questions
import gptoss_jax as gj
from gptoss_jax import scoring
from gptoss_jax.tokenizer import STOP

_CHECKPOINT = flags.DEFINE_string("checkpoint", "nano", "Checkpoint directory, or 'nano', the bundled one.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ("bfloat16", "float32"), "Of weights, and of the exact cache.")
_PER_TASK = flags.DEFINE_integer("per_task", 10, "Questions of each task at each effort.", lower_bound=1)
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


def differences(exact: gj.LLM, small: gj.LLM, examples) -> dict[str, dict[str, float]]:
    """Log-probabilities of the tokens of prompts, and of turns drawn at temperature 1 with the exact cache."""
    options = lambda e: {"reasoning_effort": e.effort, "tools": list(e.tools), "instructions": e.instructions, "current_date": e.date}
    prompts = [exact.render(list(e.messages), **options(e)) for e in examples]
    stops = tuple(exact.tokenizer.special[name] for name in STOP)
    samplings = [gj.Sampling(seed=i, max_tokens=MAX_TOKENS, stop_token_ids=stops) for i in range(len(prompts))]
    sequences = [[*prompt, *one.tokens] for prompt, one in zip(prompts, exact.generate(prompts, samplings), strict=True)]
    scores = []
    for engine in (exact.engine, small.engine):
        sizes = {"slots": engine.slots, "context": engine.context, "chunk": 64, "cache_dtype": engine.programs.cache_dtype}
        scores.append(scoring.score(engine.params, engine.config, sequences, **sizes))
    ends = [len(prompt) - 1 for prompt in prompts]
    parts = {"prompts": [slice(0, end) for end in ends], "turns": [slice(end, None) for end in ends]}
    joined = lambda arrays, slices: np.concatenate([x[part] for x, part in zip(arrays, slices, strict=True)]).astype(np.float64)
    return {name: _summary(*(joined(arrays, slices) for arrays in scores)) for name, slices in parts.items()}


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
    model = gj.load(_CHECKPOINT.value, dtype=_DTYPE.value, progress=False)
    make = lambda dtype: gj.LLM(model, slots=_SLOTS.value, context=512, chunk=192, cache_dtype=dtype)
    exact, small = make(None), make("float8_e4m3fn")
    examples = questions(_PER_TASK.value, _SEED.value)
    told = answers(exact, small, examples)
    print(
        f"{told['questions']} held-out questions, greedily, {_DTYPE.value} weights: {told['right']} answers are right with the exact cache,"
    )
    print(f"{told['right_fp8']} in eight bits; {told['same_turns']} turns are the same to the token.")
    logprobs = differences(exact, small, examples)
    print(
        "\n| tokens of | tokens | mean logprob | mean difference | standard error | mean magnitude | 99th percentile |\n|---|" + "---:|" * 6
    )
    for name, row in logprobs.items():
        print(f"| {name} | {row['tokens']} | " + " | ".join(f"{value:.3g}" for value in list(row.values())[1:]) + " |")
    print(json.dumps(told | logprobs))


if __name__ == "__main__":
    app.run(main)
