"""What a low-rank adapter is: factors of a term for each matrix, by name; and a new one to train from."""

from collections.abc import Collection, Mapping, Sequence
import numbers
import re

import flax.struct
import jax
import jax.numpy as jnp

from gptoss_jax.config import Config
from gptoss_jax.quoting import quoted

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
EXPERTS = ("gate_up_proj", "down_proj")
TARGETS = ATTENTION + EXPERTS
MOST_RANK, MOST_ALPHA = 1 << 20, 1e9


@flax.struct.dataclass
class Factors:
    """One matrix's low-rank term: scale * b @ a, for an expert matrix one of each expert.

    Attributes:
        a: [r, in] or [E, r, in].
        b: [out, r] or [E, out, r].
        scale: alpha / r, or alpha / sqrt(r) where it is rank stabilised.
    """

    a: jax.Array
    b: jax.Array
    scale: float = flax.struct.field(pytree_node=False, default=1.0)

    @property
    def rank(self) -> int:
        return self.a.shape[-2]


Adapter = Mapping[str, Factors]


def init(
    key: jax.Array,
    config: Config,
    *,
    rank: int = 8,
    alpha: float | None = None,
    targets: Sequence[str] = TARGETS,
    layers: Sequence[int] | None = None,
    dtype="float32",
) -> dict[str, Factors]:
    """An adapter to train from, which changes nothing yet: a is uniform within 1 / sqrt(in), b is zero.

    Args:
        key: for a, of `jax.random.key`.
        config: geometry.
        rank: r, of every matrix.
        alpha: the scale is alpha / rank; None is `rank`, a scale of one. 1e9 at most, as files may say.
        targets: matrices, some of `TARGETS`.
        layers: which ones; None for all.
        dtype: of a and b.

    Raises:
        ValueError: an argument is none of the above.
    """
    _check_new(key, config, rank, alpha, dtype)
    if isinstance(targets, str) or not isinstance(targets, Collection) or not targets or not all(target in TARGETS for target in targets):
        raise ValueError(f"targets must be some of {', '.join(TARGETS)}; got {quoted(targets)}; pass a list of them.")
    chosen = layers if layers is not None else range(config.num_hidden_layers)
    if not isinstance(chosen, Collection) or not all(isinstance(i, int) and 0 <= i < config.num_hidden_layers for i in chosen):
        raise ValueError(f"layers must lie in 0 ... {config.num_hidden_layers - 1}; got {quoted(layers)}; pass a list of them.")
    names = [f"layers.{i}.{target}" for i in chosen for target in TARGETS if target in targets]
    adapter = {}
    for name, own in zip(names, jax.random.split(key, len(names)), strict=True):
        *experts, out, width = shape(config, name)
        bound = width**-0.5
        a = jax.random.uniform(own, (*experts, rank, width), jnp.dtype(dtype), -bound, bound)
        adapter[name] = Factors(a, jnp.zeros((*experts, out, rank), jnp.dtype(dtype)), (rank if alpha is None else alpha) / rank)
    return adapter


def _check_new(key: jax.Array, config: Config, rank: int, alpha: float | None, dtype) -> None:
    if not isinstance(key, jax.Array):
        raise ValueError(f"key must be a random key of JAX's; got {quoted(key, 40)}; pass jax.random.key(0).")
    if not isinstance(config, Config):
        raise ValueError(f"config must be the geometry of a model; got a {type(config).__name__}; pass model.config.")
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= MOST_RANK:
        raise ValueError(f"rank must be a positive integer, {MOST_RANK:,} at most; got {quoted(rank)}.")
    number = isinstance(alpha, numbers.Real) and not isinstance(alpha, bool)
    if alpha is not None and not (number and abs(alpha) <= MOST_ALPHA):
        raise ValueError(f"alpha must be a number, {MOST_ALPHA:g} at most; got {quoted(alpha)}; pass None for a scale of one.")
    try:
        floating = jnp.issubdtype(jnp.dtype(dtype), jnp.floating)
    except TypeError:
        floating = False
    if not floating:
        raise ValueError(f"dtype must be a type of floating-point numbers; got {quoted(dtype, 40)}; pass 'float32' or 'bfloat16'.")


def shape(config: Config, name: str, what: str = "an adapter") -> tuple[int, ...]:
    """[out, in], or [E, out, in], of the matrix that an adapter's name means. Raises ValueError where it means none."""
    D, F, H, E = config.hidden_size, config.intermediate_size, config.head_dim, config.num_local_experts
    N, K = config.num_attention_heads, config.num_key_value_heads
    layer, _, target = name.rpartition(".")
    shapes = {
        "q_proj": (N * H, D), "k_proj": (K * H, D), "v_proj": (K * H, D), "o_proj": (D, N * H),
        "gate_up_proj": (E, 2 * F, D), "down_proj": (E, D, F),
    }  # fmt: skip
    number = re.fullmatch(r"layers\.([0-9]{1,4})", layer)
    if target not in shapes or not number or int(number[1]) >= config.num_hidden_layers:
        raise ValueError(
            f"{what} has names layers.0 to layers.{config.num_hidden_layers - 1} with {', '.join(TARGETS)}; got {quoted(name)}."
        )
    return shapes[target]


def check_type(adapter: Adapter) -> None:
    """Raises ValueError where it is no adapter of any model."""
    if not isinstance(adapter, Mapping) or not all(isinstance(name, str) and isinstance(one, Factors) for name, one in adapter.items()):
        got = f"a {type(adapter).__name__}"
        raise ValueError(f"an adapter must be a dictionary of names and Factors; got {got}; make it with adapters.load or adapters.init.")
    for name, factors in adapter.items():
        for side, array in (("a", factors.a), ("b", factors.b)):
            if getattr(array, "ndim", 0) not in (2, 3):
                got = f"{side} of {quoted(name)} is {quoted(array, 40)}"
                raise ValueError(f"an adapter's factors must be arrays of two dimensions, or three for experts; {got}; see Factors.")


def check(config: Config, adapter: Adapter, what: str = "the adapter") -> None:
    """Raises one ValueError that lists every matrix of an adapter, which the error calls so, that is not one of the model's."""
    if not isinstance(config, Config):
        raise ValueError(f"config must be the geometry of a model; got a {type(config).__name__}; pass model.config.")
    check_type(adapter)
    problems = []
    for name, factors in adapter.items():
        *experts, out, width = shape(config, name, what)
        r = factors.rank
        if factors.a.shape != (*experts, r, width) or factors.b.shape != (*experts, out, r):
            problems.append(
                f"{name} needs a {(*experts, 'r', width)} and b {(*experts, out, 'r')}, has {factors.a.shape} and {factors.b.shape}"
            )
    if problems:
        raise ValueError(f"{what} must be one of this model; {'; '.join(problems)}; it was made for another geometry.")
