"""Trains nano, the bundled tiny gpt-oss: vocabulary, training on the project's own `forward`, export. An entry point.

    python -m checkpoints.train_nano --run /tmp/nano                                 about 80 minutes on one core
    python -m checkpoints.train_nano --run /tmp/nano --export checkpoints/nano       what there is so far, as a checkpoint

A run that was stopped goes on from its last saved state.
"""

import json
import os
import time
from typing import Any

from absl import app, flags, logging
import jax
import numpy as np

from checkpoints import nano_data, nano_export, nano_training
from gptoss_jax.config import Config
from gptoss_jax.model.params import Params
from gptoss_jax.tokenizer import SentencePiece

_RUN = flags.DEFINE_string("run", None, "Folder of the run: vocabulary, state, log, and the checkpoint at the end.", required=True)
_STEPS = flags.DEFINE_integer("steps", 13_000, "Steps of the whole run; another number when resuming moves the decay.", lower_bound=1)
_ROWS = flags.DEFINE_integer("rows", 8, "Rows of a batch.", lower_bound=1)
_LENGTH = flags.DEFINE_integer("length", 256, "Tokens of a row; conversations that are longer are left out.", lower_bound=128)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of weights and data.")
_QUANTISE = flags.DEFINE_float("quantise_from", 0.6, "Fraction of the run after which experts are rounded to MXFP4.")
_SAVE = flags.DEFINE_float("save_minutes", 3.0, "Minutes between saved states.")
_EXPORT = flags.DEFINE_string("export", None, "Write the run's last state as a checkpoint to this folder, and do not train.")


def train(config: Config, pieces: str, params: Params, state: Any, step: int) -> Params:
    """Trains from `step` to the end of the run, saving as it goes; returns the parameters."""
    path, log = os.path.join(_RUN.value, "state.npz"), os.path.join(_RUN.value, "log.jsonl")
    feed = nano_data.stream(pieces, _SEED.value, step, _ROWS.value, _LENGTH.value)
    began = saved = time.monotonic()
    tokens, measures = 0, []
    while step < _STEPS.value:
        batch = next(feed)
        quantised = step >= _QUANTISE.value * _STEPS.value
        params, state, measure = nano_training.train_step(params, state, batch, config=config, steps=_STEPS.value, quantised=quantised)
        step, tokens = step + 1, tokens + int((batch.segments > 0).sum())
        measures.append(measure)
        if step % 100 == 0:
            mean = {name: round(float(np.mean([m[name] for m in measures])), 5) for name in measures[0]}
            speed = tokens / (time.monotonic() - began)
            line = {"step": step, "tokens_per_second": round(speed), "quantised": quantised, **mean}
            with open(log, "a") as file:
                file.write(json.dumps(line) + "\n")
            logging.info("%s", line)
            tokens, measures, began = 0, [], time.monotonic()
        if time.monotonic() - saved > 60 * _SAVE.value or step == _STEPS.value:
            nano_training.save(path, (params, state), step)
            saved = time.monotonic()
    return params


def main(_) -> None:
    pieces = nano_training.vocabulary(_RUN.value)
    tokenizer = SentencePiece(pieces)
    config = nano_training.geometry(tokenizer.vocab_size, tokenizer.special["<|return|>"])
    params, step, path = nano_training.initial(jax.random.key(_SEED.value), config), 0, os.path.join(_RUN.value, "state.npz")
    state = nano_training.optimizer(_STEPS.value).init(params)
    if os.path.exists(path):
        (params, state), step = nano_training.restore(path, (params, state))
    logging.info("step %d of %d, %d parameters", step, _STEPS.value, sum(w.size for w in jax.tree.leaves(params)))
    if _EXPORT.value is None:
        params = train(config, pieces, params, state, step)
    nano_export.write(_EXPORT.value or os.path.join(_RUN.value, "checkpoint"), params, config, pieces)


if __name__ == "__main__":
    app.run(main)
