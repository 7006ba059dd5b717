"""Predictions of the named cases of `pallas_kernels.bench`, or of any function with Mosaic kernels."""

import collections
from collections.abc import Callable
import dataclasses
import math

import jax
import numpy as np

from pallas_kernels.bench import Case
from pallas_kernels.emulator import capture
from pallas_kernels.predict import chip as chips
from pallas_kernels.predict import counts, model, simulate

LARGE = 2**22  # bytes


def predict(case: Case, gpus: tuple[str, ...], *, samples: int = counts.SAMPLES) -> dict[str, list[model.Prediction]]:
    """By GPU, each launch of a Pallas kernel that a case makes, in order; equal ones of several layers once, as one layer's."""
    return of(case.run, *_arguments(case), gpus=gpus, samples=samples)


def _arguments(case: Case) -> tuple:
    """Large arrays, weights and pages, are zeros: what a kernel does depends on tables, not on them."""
    shapes, structure = jax.tree.flatten(case.shapes())
    large = [math.prod(s.shape) * s.dtype.itemsize > LARGE for s in shapes]
    keep = lambda key: [None if skip else leaf for leaf, skip in zip(jax.tree.leaves(case.arguments(key)), large, strict=True)]
    drawn = jax.jit(keep)(jax.random.key(0))
    leaves = [np.zeros(s.shape, s.dtype) if d is None else d for s, d in zip(shapes, drawn, strict=True)]
    return jax.tree.unflatten(structure, leaves)


def of(fn: Callable, *args, gpus: tuple[str, ...], samples: int = counts.SAMPLES) -> dict[str, list[model.Prediction]]:
    """By GPU, the launches of `fn`'s kernels, each kernel once. What the kernels give is not computed: they must not depend on it.

    Args:
      gpus: names of `chip.CHIPS`.
      samples: clusters of a grid whose work is counted.
    """
    found: dict[str, dict] = {gpu: {} for gpu in gpus}
    launches = collections.Counter()

    def launch(key, operands, shapes, aliases):
        launches[key] += 1
        if key not in found[gpus[0]]:
            counted = counts.of_launch(kernels[key], operands, shapes, aliases, samples)
            for gpu in gpus:
                chip = chips.CHIPS[gpu]
                timing = simulate.run(kernels[key], operands, shapes, aliases, counted, chip)
                found[gpu][key] = model.launch(counted, timing, chip)
        return [np.zeros(s.shape, s.dtype) for s in shapes]

    run, kernels = capture.capture(fn, *args, launch=launch)
    run()
    return {gpu: [dataclasses.replace(p, launches=launches[key]) for key, p in each.items()] for gpu, each in found.items()}
