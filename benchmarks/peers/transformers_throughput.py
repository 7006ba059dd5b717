"""Padded batches through Hugging Face transformers' `generate`: the peer of benchmarks/throughput.py, which starts it.

Needs torch and transformers, not this project. Answers each line of stdin, {"prompts", "new", "rows", "order"}, with a JSON line about one
run; the first line is about itself.
"""

import argparse
import json
import sys
import time

import torch
import transformers_decode  # beside this file

_TRIAL = 32, 4  # tokens of each prompt, and of each answer, where the peer's experts implementation is chosen
_EXPERTS = ("grouped_mm", "eager")  # "batched_mm" copies an expert's weights for every token, padding included: 100 GB and more


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--threads", type=int, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = transformers_decode.load(args.checkpoint)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    print(json.dumps(transformers_decode.about(model)), flush=True)
    quickest = {}
    for line in sys.stdin:
        asked = json.loads(line)
        rows, order = asked["rows"], list(range(len(asked["new"])))
        if asked["order"] == "sorted":
            order.sort(key=lambda i: asked["new"][i])
        if rows not in quickest:
            quickest[rows] = _quickest_experts(model, [asked["prompts"][i] for i in order[-rows:]])
        transformers_decode.choose(model, "eager", quickest[rows])
        began, row_steps = time.perf_counter(), 0
        for start in range(0, len(order), rows):
            batch = order[start : start + rows]
            most = max(asked["new"][i] for i in batch)
            _generate(model, [asked["prompts"][i] for i in batch], most)
            row_steps += len(batch) * most
        seconds = time.perf_counter() - began
        print(json.dumps({"seconds": seconds, "row_steps": row_steps, "experts": quickest[rows]}), flush=True)


def _quickest_experts(model, prompts: list[list[int]]) -> str:
    """The experts implementation that answers short prompts first, each tried twice."""
    best = {}
    for experts in _EXPERTS:
        try:
            transformers_decode.choose(model, "eager", experts)
            for _ in range(2):
                began = time.perf_counter()
                _generate(model, [prompt[: _TRIAL[0]] for prompt in prompts], _TRIAL[1])
                best[experts] = min(best.get(experts, float("inf")), time.perf_counter() - began)
        except transformers_decode.FAILURES as error:
            print(f"{experts} does not run here: {str(error)[:300]}", file=sys.stderr, flush=True)
    print(f"{len(prompts)} rows: {', '.join(f'{name} {seconds:.2f} s' for name, seconds in best.items())}", file=sys.stderr, flush=True)
    return min(best, key=best.get)


def _generate(model, prompts: list[list[int]], new: int) -> None:
    """Greedy answers of `new` tokens each to prompts that are padded on the left."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with torch.inference_mode():
        answer = model.generate(ids, attention_mask=mask, max_new_tokens=new, do_sample=False, use_cache=True)
    if answer.shape[1] != longest + new:
        raise RuntimeError(f"generate must give {new} tokens; it gave {answer.shape[1] - longest}.")


if __name__ == "__main__":
    main()
