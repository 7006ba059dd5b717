"""Adapters as Hugging Face's PEFT stores them: a directory of adapter_config.json and adapter_model.safetensors.

What a file could ask for and this package does not compute is refused by name, not ignored. Source: PEFT 0.17 to 0.21.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
import json
import math
import os
from pathlib import Path
import re

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.flax import save_file

from gptoss_jax.adapters.factors import ATTENTION, EXPERTS, MOST_ALPHA, MOST_RANK, TARGETS, Adapter, Factors, check, check_type
from gptoss_jax.config import Config
from gptoss_jax.config.fields import Field, Flag, Many, Number, Text, Whole, read_json, take
from gptoss_jax.quoting import quoted
from gptoss_jax.weights import foreign, headers, locate, safetensors
from gptoss_jax.weights.headers import Stored
from gptoss_jax.weights.orbax.whole import appearing
from gptoss_jax.weights.watching import Watch

CONFIG, WEIGHTS = foreign.ADAPTER
_ATTENTION = re.compile(r"(?:base_model\.model\.)?model\.layers\.([0-9]{1,4})\.self_attn\.([qkvo]_proj)\.lora_([AB])\.weight")
_EXPERTS = re.compile(r"(?:base_model\.model\.)?model\.layers\.([0-9]{1,4})\.mlp\.experts((?:\.base_layer)*)\.lora_([AB])\.weight")
_ALPHA = Number(MOST_ALPHA, positive=False)
_READ = {
    "peft_type": Text(),
    "bias": Text(default="none"),
    "init_lora_weights": Field(default=True),
    "r": Whole(1, MOST_RANK),
    "lora_alpha": Number(MOST_ALPHA, positive=False, default=8),
    "use_rslora": Flag(default=False),
    "rank_pattern": Many(Whole(1, MOST_RANK), "ranks", most=10_000, named=True),
    "alpha_pattern": Many(_ALPHA, "numbers", most=1_000, named=True, default={}),
}
_VERSION = {"peft_version": Text(default="0.0")}
_HARMLESS = {  # they say where an adapter comes from or how it was trained, not what it computes
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_modules", "target_parameters", "task_type",
}  # fmt: skip
_UNCHANGED = (True, False, None, "default", "gaussian", "orthogonal", "eva")  # initialisations that leave the base weights alone
_DTYPES = safetensors.FLOATS | {"F16": np.float32}  # as which a dtype of the files is held
_LISTED = 5


def load(directory: str | os.PathLike, config: Config) -> dict[str, Factors]:
    """The adapter of a PEFT directory.

    Attention's projections and experts (PEFT's `target_parameters`) are read, with any ranks, alphas and rank stabilised scaling.

    Args:
        directory: with adapter_config.json and adapter_model.safetensors.
        config: of the model that it belongs to.

    Returns:
        Factors by name, in the files' dtype, float16 as float32.

    Raises:
        FileNotFoundError: a file is missing; what there is is said.
        ValueError: it is not LoRA, asks for something that is not computed here, is for another model, or a file is damaged: a value that
            is not finite, an expression in alpha_pattern that does not come to an end.
    """
    directory = foreign.path_of(directory, "an adapter")
    if not isinstance(config, Config):
        raise ValueError(f"config must be the geometry of the adapter's model; got a {type(config).__name__}; pass model.config.")
    _check_files(directory)
    settings = _settings_of(directory / CONFIG)
    path = directory / WEIGHTS
    stored = {each.name: each for each in headers.header(path)}
    if not stored:
        raise ValueError(f"{path} must hold an adapter's tensors; got none; save the adapter again.")
    _check_tensors(stored, path)
    watch = Watch(finite=True, remedy="save it again from a training that did not diverge")
    tensors = {name: jnp.asarray(safetensors.read(each, _DTYPES[each.dtype], watch=watch)) for name, each in stored.items()}
    adapter = _read(tensors, settings, config, directory)
    check(config, adapter, f"the adapter in {path}")
    return adapter


def _check_files(directory: Path) -> None:
    """Raises FileNotFoundError where there is no adapter, ValueError where there is a file; both say what there is."""
    must = f"{directory} must be a directory with {CONFIG} and {WEIGHTS}, as PEFT's save_pretrained writes them"
    if not os.path.isdir(directory):
        if os.path.exists(directory):
            raise ValueError(f"{must}; it is a file; {foreign.of_file(directory, directory.name)}.")
        raise FileNotFoundError(f"{must}; there is no such directory; check the path.")
    missing = [name for name in (CONFIG, WEIGHTS) if not os.path.lexists(directory / name)]
    if not missing:
        return
    if len(missing) == 2 and (locate.is_store(directory) or safetensors.has_shards(directory)):
        raise FileNotFoundError(f"{must}; it holds a checkpoint; load that with gptoss_jax.load, and name the adapter's directory here.")
    inner = [name for name in foreign.names_in(directory) if os.path.lexists(directory / name / CONFIG)]
    if len(missing) == 2 and inner:
        raise FileNotFoundError(f"{must}; it holds {len(inner)} in its subdirectories; pass one of them, such as {directory / inner[0]}.")
    pickled = "with safe_serialization=True" if os.path.lexists(directory / "adapter_model.bin") else "again"
    raise FileNotFoundError(f"{must}; {missing[0]} is absent, {foreign.held(directory)}; save the adapter {pickled}.")


def save(adapter: Adapter, directory: str | os.PathLike, *, base: str = "openai/gpt-oss-20b") -> None:
    """Writes an adapter as PEFT does; PEFT's `PeftModel.from_pretrained` reads it. The directory appears whole or not at all.

    Args:
        adapter: at least one matrix.
        directory: what to make; there must be nothing of that name, or an empty directory.
        base: what PEFT shall take for the model that the adapter belongs to.
    """
    check_type(adapter)
    if not isinstance(base, str):
        raise ValueError(f"base must be the name of a model, or a path as a string; got {quoted(base, 60)}; leave it out for gpt-oss-20b.")
    if not adapter:
        raise ValueError("the adapter must have at least one matrix; got none.")
    tensors: dict[str, jax.Array] = {}
    for name, factors in adapter.items():
        layer, target = re.fullmatch(r"layers\.(\d+)\.(\w+)", name).groups()
        a, b = factors.a, factors.b
        where = f"self_attn.{target}"
        if target in EXPERTS:  # PEFT wraps the module once for each of its parameters, gate_up_proj first
            both = {f"layers.{layer}.{one}" for one in EXPERTS} <= adapter.keys()
            where = "mlp.experts" + (".base_layer" if both and target == EXPERTS[0] else "")
            a = a.reshape(-1, a.shape[-1])  # [E*r, in]
            b = jnp.transpose(b, (1, 2, 0)).reshape(b.shape[1], -1)  # [out, r*E]
        prefix = f"base_model.model.model.layers.{layer}.{where}"
        tensors |= {f"{prefix}.lora_A.weight": a, f"{prefix}.lora_B.weight": b}
    with appearing(directory) as partial:
        save_file(tensors, partial / WEIGHTS, metadata={"format": "pt"})
        (partial / CONFIG).write_text(json.dumps(_settings(adapter, base), indent=2) + "\n", encoding="utf-8")


def _settings_of(path: Path) -> dict:
    """What adapter_config.json says of what is computed; refuses what is not."""
    values = read_json(path)
    settings = take(values, _READ, path) | take(values, _VERSION, path)
    problems = []
    if settings["peft_type"] != "LORA":
        problems.append(f"peft_type is {quoted(settings['peft_type'])}, must be 'LORA'")
    if settings["bias"] != "none":
        problems.append(f"bias is {quoted(settings['bias'])}, must be 'none'")
    if settings["init_lora_weights"] not in _UNCHANGED:
        problems.append(f"init_lora_weights is {quoted(settings['init_lora_weights'])}, which changes the base weights too")
    others = [key for key, value in values.items() if value and key not in _READ.keys() | _HARMLESS]
    problems += [f"{quoted(key)[1:-1]} is {quoted(values[key])}" for key in others[:_LISTED]]
    if problems:
        raise ValueError(f"{path} must be of a plain LoRA; {'; '.join(problems)}; merge that adapter with PEFT and load the result.")
    from gptoss_jax.adapters.patterns import Patterns  # `regex`, which few adapters need

    return settings | {"alpha_pattern": Patterns(settings["alpha_pattern"], path)}


def _check_tensors(stored: Mapping[str, Stored], path: Path) -> None:
    """By headers: tensors of attention's projections and experts, which are matrices of floating-point numbers."""
    unknown = [name for name in stored if not _ATTENTION.fullmatch(name) and not _EXPERTS.fullmatch(name)]
    if unknown:
        raise ValueError(
            f"the tensors in {path} must be of attention's projections and experts; {len(unknown)} are not: {_listing(unknown)}; train an "
            "adapter without these modules."
        )
    wrong = [name for name, each in stored.items() if len(each.shape) != 2 or 0 in each.shape or each.dtype not in _DTYPES]
    if wrong:
        raise ValueError(
            f"the tensors in {path} must be matrices of {', '.join(_DTYPES)}; {len(wrong)} are not: {_listing(wrong)}; save it again."
        )


def _listing(names: Sequence[str]) -> str:
    return ", ".join(quoted(name)[1:-1] for name in sorted(names)[:_LISTED])


def _read(tensors: Mapping[str, jax.Array], settings: Mapping, config: Config, directory: Path) -> dict[str, Factors]:
    """Factors by name."""
    found: dict[tuple[int, str], dict[str, jax.Array]] = {}
    for name, tensor in tensors.items():
        layer, module, side = (_ATTENTION.fullmatch(name) or _EXPERTS.fullmatch(name)).groups()
        sides = found.setdefault((int(layer), module), {})
        if side in sides:
            raise ValueError(
                f"layer {layer}'s {module or 'experts'} must have one lora_{side} in {directory / WEIGHTS}; got two; save it again."
            )
        sides[side] = tensor
    adapter = {}
    turned = _turned([sides for (_, module), sides in found.items() if module not in ATTENTION], settings, config, directory)
    for (layer, module), sides in sorted(found.items()):
        if sides.keys() != {"A", "B"}:
            raise ValueError(
                f"layer {layer}'s {module or 'experts'} must have lora_A and lora_B in {directory / WEIGHTS}; got only "
                f"lora_{next(iter(sides))}; save it again."
            )
        a, b = sides["A"], sides["B"]
        target, place = module, "self_attn"
        if target not in ATTENTION:
            a, b = _experts(config, a, b, turned, directory)
            target, place = _which(config, a, b, directory), "mlp.experts"
        name = f"layers.{layer}.{target}"
        if name in adapter:
            raise ValueError(f"{name} must have one adapter in {directory / WEIGHTS}; got two; save it again.")
        adapter[name] = Factors(a, b, _scale(settings, f"model.layers.{layer}.{place}.{target}", a.shape[-2]))
    order = lambda name: (int(name.split(".")[1]), TARGETS.index(name.split(".")[2]))
    return {name: adapter[name] for name in sorted(adapter, key=order)}


def _turned(experts: list[Mapping[str, jax.Array]], settings: Mapping, config: Config, directory: Path) -> bool:
    """Whether experts' factors lead from a matrix' output to its input, which PEFT from 0.19 on does beside transformers before 5.

    Widths tell, but for a down_proj that is square and alone.
    """
    D, F = config.hidden_size, config.intermediate_size
    widths = {(sides["A"].shape[1], sides["B"].shape[0]) for sides in experts if sides.keys() == {"A", "B"}}
    straight, turned = {(D, 2 * F), (F, D)}, {(2 * F, D), (D, F)}
    told = {pair in turned for pair in widths if (pair in turned) != (pair in straight)}
    if told:
        return told == {True}
    version = re.match(r"([0-9]{1,6})\.([0-9]{1,6})", settings["peft_version"])
    if widths and version and (int(version[1]), int(version[2])) >= (0, 19):
        raise ValueError(
            f"an adapter on down_proj alone, {D} by {D}, does not tell which way its factors lead: PEFT {version[0]} (by "
            f"{directory / CONFIG}) writes either; train it on gate_up_proj too, or merge it with PEFT and load the result."
        )
    return False


def _experts(config: Config, a: jax.Array, b: jax.Array, turned: bool, directory: Path) -> tuple[jax.Array, jax.Array]:
    """PEFT's factors [E*r, in] and [out, r*E] as [E, r, in] and [E, out, r]."""
    E = config.num_local_experts
    if a.shape[0] % E or b.shape[1] != a.shape[0]:
        raise ValueError(
            f"factors of {E} experts must be [{E}*r, in] and [out, r*{E}]; got {a.shape} and {b.shape} in {directory / WEIGHTS}; "
            "it is of another model."
        )
    a, b = a.reshape(E, -1, a.shape[1]), jnp.transpose(b.reshape(b.shape[0], -1, E), (2, 0, 1))
    return (b.swapaxes(1, 2), a.swapaxes(1, 2)) if turned else (a, b)


def _which(config: Config, a: jax.Array, b: jax.Array, directory: Path) -> str:
    """Which expert matrix factors belong to: PEFT's names do not tell, their widths do."""
    D, F = config.hidden_size, config.intermediate_size
    for target, widths in (("gate_up_proj", (D, 2 * F)), ("down_proj", (F, D))):
        if (a.shape[2], b.shape[1]) == widths:
            return target
    got = f"{a.shape[2]} to {b.shape[1]} in {directory / WEIGHTS}"
    raise ValueError(f"factors of experts must lead from {D} to {2 * F}, or from {F} to {D}; got {got}; it is of another model.")


def _scale(settings: Mapping, module: str, rank: int) -> float:
    """alpha / r or alpha / sqrt(r), where a pattern may name another alpha."""
    alpha = float(settings["alpha_pattern"].alpha(module, settings["lora_alpha"]))
    return alpha / (math.sqrt(rank) if settings["use_rslora"] else rank)


def _settings(adapter: Adapter, base: str) -> dict:
    """adapter_config.json of an adapter."""
    full = {}
    for name in adapter:
        layer, target = name.rsplit(".", 1)
        full[name] = f"model.{layer}.{'self_attn' if target in ATTENTION else 'mlp.experts'}.{target}"
    ranks = {full[name]: factors.rank for name, factors in adapter.items()}
    alphas = {full[name]: factors.scale * factors.rank for name, factors in adapter.items()}
    rank, alpha = (Counter(values.values()).most_common(1)[0][0] for values in (ranks, alphas))
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "r": rank,
        "rank_pattern": {re.escape(name): r for name, r in ranks.items() if r != rank},
        "alpha_pattern": {re.escape(name): x for name, x in alphas.items() if x != alpha},
        "target_modules": sorted(name for name in full.values() if name.endswith(ATTENTION)),
        "target_parameters": sorted(name for name in full.values() if name.endswith(EXPERTS)) or None,
    }
