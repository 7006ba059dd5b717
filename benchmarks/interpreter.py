"""Asks nano through the Hopper kernels in Mosaic's interpreter, on a CPU: are its tokens those that XLA's forms give?

    python -m benchmarks.interpreter

Takes minutes, which say nothing: a check, not a time. The exit status is 1 where the tokens differ.
"""

import contextlib
import os

from absl import app, flags

_QUESTION = flags.DEFINE_string("question", "What is 27 + 58?", "What to ask.")
_CONTEXT, _CHUNK = 256, 128


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    os.environ.setdefault("NPROC", "32")  # threads of XLA's CPU backend: interpreted warpgroups wait for each other
    os.environ["JAX_PLATFORMS"] = "cpu"
    import gptoss_jax as gj
    from pallas_kernels import hopper

    replies = {}
    for name, experts, within in (("XLA", "packed", contextlib.nullcontext()), ("kernels", "tiled", hopper.interpret())):
        llm = gj.LLM(gj.load("nano", experts=experts, progress=False), slots=1, context=_CONTEXT, chunk=_CHUNK)
        with within:
            replies[name] = llm.chat(_QUESTION.value, gj.Sampling(temperature=0), reasoning_effort="low")
        print(f"{name}: {replies[name].reasoning} | {replies[name].text} ({len(replies[name].tokens)} tokens)", flush=True)
    return int(replies["XLA"].tokens != replies["kernels"].tokens)


if __name__ == "__main__":
    app.run(main)
