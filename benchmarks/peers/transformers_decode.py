"""Decode tokens a second of Hugging Face transformers on one checkpoint: the peer of benchmarks/decode.py.

Stands alone: needs torch and transformers, not this project. Weights are dequantised to bfloat16 at load, attention is
eager. Every way that transformers has to run the experts on a CPU is tried, under `generate` and under a bare loop around
the model's forward, and the quickest is what gets timed.

    python benchmarks/peers/transformers_decode.py --checkpoint=DIR --batch=1 --prompt=64 --new=64

With --serve it reads requests from stdin, one JSON object a line ({"batch": 1, "tokens": [[...]], "new": 64}), and answers
each with one line of JSON, so that another program can alternate its own runs with these.
"""

import argparse
import json
import random
import sys
import time

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, Mxfp4Config, StoppingCriteriaList

EXPERTS = ("eager", "batched_mm", "grouped_mm")
LOOPS = ("generate", "forward")


class Peer:
    """A loaded model and what was found to be its quickest settings for each batch."""

    def __init__(self, checkpoint: str, threads: int):
        torch.set_num_threads(threads)
        stored = getattr(AutoConfig.from_pretrained(checkpoint), "quantization_config", None)
        packed = {"quantization_config": Mxfp4Config(dequantize=True)} if stored else {}
        self.model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16, attn_implementation="eager", **packed).eval()
        self.model.generation_config.eos_token_id = None  # nothing ends an answer early, so no processor has to prevent it
        self.model.generation_config.pad_token_id = 0
        self.choice: dict[int, tuple[str, str]] = {}

    def measure(self, tokens: list[list[int]], new: int) -> dict:
        """Seconds of `new` decode steps after the prompt, and of the prompt with the first token, at the quickest settings."""
        ids = torch.tensor(tokens)
        batch = len(tokens)
        if batch not in self.choice:
            self.choice[batch] = self._choose(ids[:, :4], 8)  # short prompts: only decode steps are compared
        self._set(self.choice[batch][0])
        prefill, decode = self._time(ids, new, self.choice[batch][1])
        return {
            "tokens_per_second": batch * new / decode,
            "decode_seconds": decode,
            "prefill_seconds": prefill,
            "experts": self.choice[batch][0],
            "loop": self.choice[batch][1],
        }

    def _choose(self, ids: torch.Tensor, new: int) -> tuple[str, str]:
        best = {}
        for experts in EXPERTS:
            try:
                self._set(experts)
                for loop in LOOPS:
                    trial = self._time(ids, 4, loop)[1] / 4
                    if best and trial > 3 * min(best.values()):
                        continue  # far from the quickest, warm or not
                    best[experts, loop] = min(self._time(ids, new, loop)[1] for _ in range(3)) / new
            except (ValueError, KeyError, RuntimeError, ImportError, NotImplementedError) as error:
                print(f"experts_implementation={experts!r} does not run here: {error}", file=sys.stderr)
        for (experts, loop), seconds in sorted(best.items(), key=lambda item: item[1]):
            print(f"batch {len(ids)}: {experts}, {loop}: {len(ids) / seconds:.1f} tokens/s", file=sys.stderr)
        return min(best, key=best.get)

    def _set(self, experts: str) -> None:
        if hasattr(self.model, "set_experts_implementation"):
            self.model.set_experts_implementation(experts)
        elif experts != "eager":
            raise NotImplementedError(f"transformers {transformers.__version__} has no experts_implementation")

    @torch.inference_mode()
    def _time(self, ids: torch.Tensor, new: int, loop: str) -> tuple[float, float]:
        """Seconds until the first token, and from there until `new` more."""
        run = self._generate if loop == "generate" else self._forward
        return run(ids, new)

    def _generate(self, ids, new):
        times = [time.perf_counter()]

        def clock(tokens, scores):
            times.append(time.perf_counter())
            return torch.zeros(len(tokens), dtype=torch.bool)

        self.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new + 1,
            do_sample=False,
            use_cache=True,
            stopping_criteria=StoppingCriteriaList([clock]),
        )
        if len(times) != new + 2:
            raise RuntimeError(f"generate gave {len(times) - 1} tokens, not {new + 1}")
        return times[1] - times[0], times[-1] - times[1]

    def _forward(self, ids, new):
        began = time.perf_counter()
        out = self.model(ids, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1].argmax(-1, keepdim=True)
        prefilled = time.perf_counter()
        for _ in range(new):
            out = self.model(token, past_key_values=out.past_key_values, use_cache=True)
            token = out.logits[:, -1].argmax(-1, keepdim=True)
        token.tolist()
        return prefilled - began, time.perf_counter() - prefilled


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=64, help="tokens of each prompt")
    parser.add_argument("--new", type=int, default=64, help="decode steps")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--serve", action="store_true")
    args = parser.parse_args()
    peer = Peer(args.checkpoint, args.threads)
    versions = {"transformers": transformers.__version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    if args.serve:
        print(json.dumps(versions), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(peer.measure(request["tokens"], request["new"])), flush=True)
        return
    vocab = peer.model.config.vocab_size
    tokens = [[random.Random(row).randrange(vocab) for _ in range(args.prompt)] for row in range(args.batch)]
    runs = [peer.measure(tokens, args.new) for _ in range(args.repeats)]
    print(json.dumps(versions | sorted(runs, key=lambda run: run["tokens_per_second"])[len(runs) // 2]))


if __name__ == "__main__":
    main()
