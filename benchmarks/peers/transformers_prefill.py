"""Prompt tokens a second of Hugging Face transformers: the peer of benchmarks/prefill.py.

Stands alone: needs torch and transformers, not this project. Random bfloat16 weights for a config.json, on the GPU if there is one. What
is timed is the prompt into the cache and the logits after its last token; the quickest of transformers' settings counts.

    python benchmarks/peers/transformers_prefill.py --config=config.json --prompt=1024,8192
"""

import argparse
import json
import statistics
import sys

import torch
from transformers_decode import FAILURES, about, choose, draw, now, prompt_chunk, prompts, settings


@torch.inference_mode()
def prefill(model: torch.nn.Module, ids: torch.Tensor, chunk: int) -> float:
    """Seconds until the first token is known."""
    began, cache = now(), None
    for part in ids.split(chunk, 1):
        out = model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache = out.past_key_values
    out.logits[:, -1].argmax(-1).tolist()
    return now() - began


def measure(model: torch.nn.Module, ids: torch.Tensor, repeats: int) -> dict:
    """Tokens a second at the quickest settings; each is tried with the longest chunks that memory allows, and with a quarter."""
    largest = prompt_chunk(model, *ids.shape)
    best = {}
    for attention, experts in settings(model):
        for chunk in dict.fromkeys((largest, max(1, largest // 4))):
            try:
                choose(model, attention, experts)
                prefill(model, ids, chunk)
                best[attention, experts, chunk] = prefill(model, ids, chunk)
            except FAILURES as error:
                print(f"{attention}, {experts}, chunk {chunk} does not run here: {str(error)[:300]}", file=sys.stderr, flush=True)
    for choice, seconds in sorted(best.items(), key=lambda item: item[1]):
        print(f"prompt {ids.shape[1]}: {choice}: {ids.numel() / seconds:.1f} tokens/s", file=sys.stderr, flush=True)
    attention, experts, chunk = min(best, key=best.get)
    choose(model, attention, experts)
    seconds = statistics.median(prefill(model, ids, chunk) for _ in range(repeats))
    return {"tokens_per_second": ids.numel() / seconds, "attention": attention, "experts": experts, "chunk": chunk}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="config.json of a model with random weights")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", default="1024,8192", help="tokens of each prompt, with commas")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    model = draw(args.config)
    if isinstance(model, str):
        print(json.dumps({"skipped": model}))
        return
    for length in map(int, args.prompt.split(",")):
        ids = torch.tensor(prompts(model, args.batch, length), device=model.device)
        result = measure(model, ids, args.repeats)
        print(json.dumps(about(model) | {"batch": args.batch, "prompt": length} | result), flush=True)


if __name__ == "__main__":
    main()
