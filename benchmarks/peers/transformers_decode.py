"""Decode tokens a second of Hugging Face transformers: the peer of benchmarks/decode.py.

Stands alone: needs torch and transformers, not this project. The model is a checkpoint's, dequantised to bfloat16 at load, on the CPU;
or a config.json's with random bfloat16 weights, made on the GPU if there is one. Every way that transformers has here to run experts,
attention and the loop over tokens is tried, and the quickest is what gets timed.

    python benchmarks/peers/transformers_decode.py --checkpoint=DIR --batch=1 --prompt=64 --new=64
    python benchmarks/peers/transformers_decode.py --config=config.json --batch=1,64 --prompt=1024 --new=64

Prints a JSON line per batch. With --serve it reads requests from stdin, one JSON object a line ({"tokens": [[...]], "new": 64}), and
answers each with one line, so that another program can alternate its own runs with these.
"""

import argparse
from collections.abc import Iterator
import datetime
import json
from pathlib import Path
import random
import statistics
import sys
import time

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, Mxfp4Config, StoppingCriteriaList

EXPERTS = ("eager", "batched_mm", "grouped_mm")
LOOPS = ("generate", "forward")
FAILURES = (ValueError, KeyError, RuntimeError, ImportError, NotImplementedError, AttributeError, TypeError)
_SCORES = 2**31  # elements of attention scores that eager attention may hold at a time: longer prompts are fed in chunks


def load(checkpoint: str) -> torch.nn.Module:
    """The model of a checkpoint directory, on the CPU."""
    stored = getattr(AutoConfig.from_pretrained(checkpoint), "quantization_config", None)
    packed = {"quantization_config": Mxfp4Config(dequantize=True)} if stored else {}
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, attn_implementation="eager", **packed).eval()


def draw(config_file: str) -> torch.nn.Module | str:
    """A model with random weights, on the GPU if there is one; or, in words, why it does not fit."""
    values = json.loads(Path(config_file).read_text(encoding="utf-8"))
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    make = lambda: AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="eager").eval()
    if not torch.cuda.is_available():
        return make()
    with torch.device("meta"):
        needed = 2 * sum(weights.numel() for weights in make().parameters())
    room = torch.cuda.get_device_properties(0).total_memory
    if needed > 0.9 * room:
        return f"{needed / 1e9:.0f} GB of bfloat16 weights do not fit the {room / 1e9:.0f} GB of {torch.cuda.get_device_name()}"
    with torch.device("cuda"):
        return make()


def settings(model: torch.nn.Module) -> Iterator[tuple[str, str]]:
    """Pairs of an attention and an experts implementation, as far as this machine may have them; sdpa has no sinks."""
    for attention in ("eager", "flex_attention") if model.device.type == "cuda" else ("eager",):
        for experts in EXPERTS:
            yield attention, experts


def choose(model: torch.nn.Module, attention: str, experts: str) -> None:
    """Set a pair. Raises one of FAILURES where this transformers has no such thing."""
    if attention != model.config._attn_implementation:
        model.set_attn_implementation(attention)
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation(experts)
    elif experts != "eager":
        raise NotImplementedError(f"transformers {transformers.__version__} has no experts_implementation")


def prompt_chunk(model: torch.nn.Module, batch: int, length: int) -> int:
    """Tokens of each prompt to feed at a time."""
    return max(16, min(length, _SCORES // (batch * length * model.config.num_attention_heads)))


def now() -> float:
    """Seconds, once the device has done all it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def about(model: torch.nn.Module) -> dict:
    """Names that results are published with."""
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else "cpu"
    versions = {"transformers": transformers.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    return {"device": device, **versions, "date": datetime.date.today().isoformat()}


class Peer:
    """A model and what was found to be its quickest settings for each batch."""

    def __init__(self, model: torch.nn.Module):
        self.model = model
        self.model.generation_config.eos_token_id = None  # nothing ends an answer early, so no processor has to prevent it
        self.model.generation_config.pad_token_id = 0
        self.choice: dict[int, tuple[str, str, str]] = {}

    def measure(self, tokens: list[list[int]], new: int) -> dict:
        """Seconds of `new` decode steps after the prompt, and of the prompt with the first token, at the quickest settings."""
        ids = torch.tensor(tokens, device=self.model.device)
        batch = len(tokens)
        if batch not in self.choice:
            # On a CPU short prompts do: only decode steps are compared, and keys are few beside weights.
            self.choice[batch] = self._choose(ids if ids.is_cuda else ids[:, :4], 8)
        attention, experts, loop = self.choice[batch]
        choose(self.model, attention, experts)
        prefill, decode = self._time(ids, new, loop)
        return {
            "tokens_per_second": batch * new / decode,
            "decode_seconds": decode,
            "prefill_seconds": prefill,
            "attention": attention,
            "experts": experts,
            "loop": loop,
        }

    def _choose(self, ids: torch.Tensor, new: int) -> tuple[str, str, str]:
        best = {}
        loops = (*LOOPS, "generate, static cache, compiled") if ids.is_cuda else LOOPS
        for attention, experts in settings(self.model):
            for loop in loops:
                try:
                    choose(self.model, attention, experts)
                    trial = self._time(ids, new, loop)[1] / new  # also compiles
                    if best and loop in LOOPS and trial > 3 * min(best.values()):
                        continue  # far from the quickest, warm or not
                    best[attention, experts, loop] = min(self._time(ids, new, loop)[1] for _ in range(3)) / new
                except FAILURES as error:
                    print(f"{attention}, {experts}, {loop} does not run here: {str(error)[:300]}", file=sys.stderr, flush=True)
        for choice, seconds in sorted(best.items(), key=lambda item: item[1]):
            print(f"batch {len(ids)}: {', '.join(choice)}: {len(ids) / seconds:.1f} tokens/s", file=sys.stderr, flush=True)
        return min(best, key=best.get)

    @torch.inference_mode()
    def _time(self, ids: torch.Tensor, new: int, loop: str) -> tuple[float, float]:
        """Seconds until the first token, and from there until `new` more."""
        if loop == "forward":
            return self._forward(ids, new)
        return self._generate(ids, new, {"cache_implementation": "static"} if "static" in loop else {})

    def _generate(self, ids, new, cache):
        chunk = prompt_chunk(self.model, *ids.shape)
        chunks = {"prefill_chunk_size": chunk} if chunk < ids.shape[1] else {}
        times, count = [now()], 0

        def clock(tokens, scores):
            nonlocal count
            count += 1
            if count in (1, new + 1):
                times.append(now())
            return torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)

        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new + 1,
            do_sample=False,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([clock]),
            **cache,
            **chunks,
        )
        if count != new + 1:
            raise RuntimeError(f"generate gave {count} tokens, not {new + 1}")
        return times[1] - times[0], times[2] - times[1]

    def _forward(self, ids, new):
        began, cache = now(), None
        for part in ids.split(prompt_chunk(self.model, *ids.shape), 1):
            out = self.model(part, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        prefilled = now()
        for _ in range(new):
            out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
        token.tolist()
        return prefilled - began, now() - prefilled


def prompts(model: torch.nn.Module, batch: int, length: int) -> list[list[int]]:
    """Random ids."""
    return [[random.Random(row).randrange(model.config.vocab_size) for _ in range(length)] for row in range(batch)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--checkpoint", help="directory")
    what.add_argument("--config", help="config.json of a model with random weights")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", default="1", help="numbers of rows, with commas")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="decode steps")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--serve", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    model = load(args.checkpoint) if args.checkpoint else draw(args.config)
    if isinstance(model, str):
        print(json.dumps({"skipped": model}))
        return
    peer = Peer(model)
    if args.serve:
        print(json.dumps(about(model)), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(peer.measure(request["tokens"], request["new"])), flush=True)
        return
    for batch in map(int, args.batch.split(",")):
        tokens = prompts(model, batch, args.prompt)
        runs = [peer.measure(tokens, args.new) for _ in range(args.repeats + 1)][1:]  # the first one warms up
        result = runs[-1] | {"tokens_per_second": statistics.median(run["tokens_per_second"] for run in runs)}
        print(json.dumps(about(model) | {"batch": batch, "prompt": args.prompt, "new": args.new} | result), flush=True)


if __name__ == "__main__":
    main()
