"""What a plan is made for: a model, GPUs as published, and how the engine shall run on them. Compiles nothing."""

import dataclasses
import os
from pathlib import Path
import re

from gptoss_jax.config import GPT_OSS_20B, GPT_OSS_120B, Config
from gptoss_jax.engine.engine import Engine
from gptoss_jax.engine.sizes import CHUNK
from gptoss_jax.model.params import ExpertsForm
from gptoss_jax.parallel import sharding
from gptoss_jax.parallel.sharding import Partition
from gptoss_jax.plan import abstract
from gptoss_jax.quoting import quoted
from pallas_kernels import aot
from pallas_kernels.mxfp4.tiles import TILE

PUBLISHED = {"gpt-oss-20b": GPT_OSS_20B, "gpt-oss-120b": GPT_OSS_120B}
MOST_GPUS = 8  # of one host, between which NVLink runs

_FLOPS = 989e12  # of an H100 or H200 SXM: dense bfloat16, as published
_LINK = 25e9  # bytes a second of one of its NVLinks, each way; 18 of them: the published 900 GB/s, both ways together


@dataclasses.dataclass(frozen=True)
class Card:
    """One GPU as published.

    Attributes:
      memory: bytes.
      bandwidth: bytes a second of its memory.
      flops: a second, dense bfloat16.
      link: bytes a second that it can send to others, and at the same time receive.
    """

    memory: int
    bandwidth: float
    flops: float
    link: float


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is planned for.

    Attributes:
      config: the model.
      gpu: one of `aot.GPUS`.
      num_gpus: of one host, in a mesh (data, num_gpus / data).
      data: replicas of the weights, which share the slots.
      slots, context, chunk: the engine's.
      filled: tokens in every row's cache when the step of the floor begins; None for all but one.
      prompt: tokens of a prompt, for its floor; None for a chunk.
      memory_fraction: the part of a GPU's memory that JAX may use. The rest is for the CUDA context, code and libraries.

    Raises:
      ValueError: this cannot be; what needs a mesh is said by `partition`.
    """

    config: Config
    gpu: str
    num_gpus: int = 1
    data: int = 1
    slots: int = 64
    context: int = 8192
    chunk: int = CHUNK
    filled: int | None = None
    prompt: int | None = None
    memory_fraction: float = 0.9

    def __post_init__(self):
        aot.target(self.gpu)
        if not 1 <= self.num_gpus <= MOST_GPUS:
            raise ValueError(
                f"num_gpus must be from 1 to {MOST_GPUS}, the GPUs of a host; got {quoted(self.num_gpus)}; plan each host alone."
            )
        if self.data < 1 or self.num_gpus % self.data:
            raise ValueError(
                f"data must divide num_gpus ({self.num_gpus}); got {quoted(self.data)}; data=1 spreads the model over all of them."
            )
        if not 0 < self.memory_fraction <= 1:
            raise ValueError(f"memory_fraction must be above 0 and at most 1; got {quoted(self.memory_fraction)}; 0.9 is usual.")
        for name in ("filled", "prompt"):
            value = getattr(self, name)
            if value is not None and not 0 < value < self.context:
                raise ValueError(f"{name} must lie between 0 and context ({self.context:,}); got {quoted(value)}; pass a smaller one.")

    @property
    def partition(self) -> Partition | None:
        """How the model lies on the absent GPUs; None on a single one.

        Raises:
          ValueError: the mesh cannot divide the model.
          RuntimeError: the extra `aot` is not installed.
        """
        if self.num_gpus == 1:
            return None
        shape = (self.data, self.num_gpus // self.data)
        return sharding.partition(aot.mesh(self.gpu, self.num_gpus, shape=shape, axis_names=sharding.AXES), self.config)

    @property
    def form(self) -> ExpertsForm:
        """How experts are held on a Hopper."""
        tiles = self.config.hidden_size % TILE == self.config.intermediate_size % TILE == 0
        return "tiled" if tiles else "packed"

    def engine(self) -> Engine:
        """The engine, which holds no arrays: its params are abstract ones. Raises what it raises, and what `partition` does."""
        params = abstract.weights(self.config, self.form, self.partition)
        return Engine(params, self.config, eos_token_ids=(), slots=self.slots, context=self.context, chunk=self.chunk)


def read_config(model: str) -> Config:
    """The geometry that a published name, a config.json or a directory with one stands for.

    Raises:
      ValueError, FileNotFoundError: there is none, or it describes no gpt-oss.
    """
    name = model.removeprefix("openai/")
    if name in PUBLISHED:
        return PUBLISHED[name]
    path = Path(os.path.expanduser(model))
    if not os.path.exists(path):
        names, given = ", ".join(PUBLISHED), quoted(model)[1:-1]
        raise FileNotFoundError(f"model must be one of {names}, a config.json or a directory that holds one; there is no {given}.")
    return Config.from_json(path / "config.json" if os.path.isdir(path) else path)


def card(gpu: str) -> Card:
    """The published figures of one of `aot.GPUS`."""
    target = aot.target(gpu)
    number = lambda name: int(re.search(rf"\b{name}: (\d+)", target)[1])
    return Card(number("device_memory_size"), float(number("memory_bandwidth")), _FLOPS, number("active_links") * _LINK)
