"""Adapters as Hugging Face's PEFT stores them: a directory of adapter_config.json and adapter_model.safetensors.

What a file could ask for and this package does not compute is refused by name, not ignored. Source: PEFT 0.17 to 0.21.
"""

from collections import Counter
from collections.abc import Mapping
import json
import math
import os
from pathlib import Path
import re

import jax
import jax.numpy as jnp
from safetensors.flax import load_file, save_file

from gptoss_jax.adapters.factors import ATTENTION, EXPERTS, TARGETS, Adapter, Factors, check
from gptoss_jax.config import Config
from gptoss_jax.config.fields import read_json
from gptoss_jax.weights.orbax.whole import appearing

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_ATTENTION = re.compile(r"(?:base_model\.model\.)?model\.layers\.(\d+)\.self_attn\.([qkvo]_proj)\.lora_([AB])\.weight")
_EXPERTS = re.compile(r"(?:base_model\.model\.)?model\.layers\.(\d+)\.mlp\.experts((?:\.base_layer)*)\.lora_([AB])\.weight")
_READ = {"r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "peft_type", "bias", "init_lora_weights"}
_HARMLESS = {  # they say where an adapter comes from or how it was trained, not what it computes
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config", "exclude_modules", "inference_mode",
    "layers_pattern", "layers_to_transform", "lora_dropout", "lora_ga_config", "megatron_core", "peft_version", "qalora_group_size",
    "revision", "runtime_config", "target_modules", "target_parameters", "task_type",
}  # fmt: skip
_UNCHANGED = (True, False, None, "default", "gaussian", "orthogonal", "eva")  # initialisations that leave the base weights alone


def load(directory: str | os.PathLike, config: Config) -> dict[str, Factors]:
    """The adapter of a PEFT directory.

    Attention's projections and experts (PEFT's `target_parameters`) are read, with any ranks, alphas and rank stabilised scaling.

    Args:
        directory: with adapter_config.json and adapter_model.safetensors.
        config: of the model that it belongs to.

    Returns:
        Factors by name, in the files' dtype.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: it is not LoRA, asks for something that is not computed here, or is for another model.
    """
    directory = Path(os.path.expanduser(directory))
    for name in (CONFIG, WEIGHTS):
        if not (directory / name).is_file():
            held = ", ".join(sorted(entry.name for entry in directory.iterdir())[:5]) if directory.is_dir() else "no directory"
            raise FileNotFoundError(f"{directory} must hold {CONFIG} and {WEIGHTS}, as PEFT's save_pretrained writes them; it is {held}.")
    settings = read_json(directory / CONFIG)
    _check_settings(settings, directory)
    adapter, unknown = _read(load_file(directory / WEIGHTS), settings, config)
    if unknown:
        raise ValueError(
            f"the tensors in {directory / WEIGHTS} must be of attention's projections and experts; {len(unknown)} are not: "
            f"{', '.join(sorted(unknown)[:5])}; train an adapter without these modules."
        )
    check(config, adapter)
    return adapter


def save(adapter: Adapter, directory: str | os.PathLike, *, base: str = "openai/gpt-oss-20b") -> None:
    """Writes an adapter as PEFT does; PEFT's `PeftModel.from_pretrained` reads it. The directory appears whole or not at all.

    Args:
        adapter: at least one matrix.
        directory: what to make; there must be nothing of that name, or an empty directory.
        base: what PEFT shall take for the model that the adapter belongs to.
    """
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


def _check_settings(settings: Mapping, directory: Path) -> None:
    problems = []
    if settings.get("peft_type") != "LORA":
        problems.append(f"peft_type is {settings.get('peft_type')!r}, must be 'LORA'")
    if settings.get("bias", "none") != "none":
        problems.append(f"bias is {settings['bias']!r}, must be 'none'")
    if settings.get("init_lora_weights", True) not in _UNCHANGED:
        problems.append(f"init_lora_weights is {settings['init_lora_weights']!r}, which changes the base weights too")
    problems += [f"{key} is {value!r}" for key, value in settings.items() if value and key not in _READ | _HARMLESS]
    if problems:
        raise ValueError(
            f"{directory / CONFIG} must be of a plain LoRA; {'; '.join(problems)}; merge that adapter with PEFT and load the result."
        )


def _read(tensors: Mapping[str, jax.Array], settings: Mapping, config: Config) -> tuple[dict[str, Factors], list[str]]:
    """Factors by name, and the names of tensors that are of neither attention nor experts."""
    found: dict[tuple[int, str], dict[str, jax.Array]] = {}
    unknown = []
    for name, tensor in tensors.items():
        match = _ATTENTION.fullmatch(name) or _EXPERTS.fullmatch(name)
        if match is None:
            unknown.append(name)
            continue
        layer, module, side = match.groups()
        found.setdefault((int(layer), module), {})[side] = tensor if tensor.dtype != jnp.float16 else tensor.astype(jnp.float32)
    adapter = {}
    turned = _turned([sides for (_, module), sides in found.items() if module not in ATTENTION], settings, config)
    for (layer, module), sides in sorted(found.items()):
        if sides.keys() != {"A", "B"}:
            raise ValueError(
                f"layer {layer}'s {module or 'experts'} must have lora_A and lora_B; got only lora_{next(iter(sides))}; save it again."
            )
        a, b = sides["A"], sides["B"]
        target, place = module, "self_attn"
        if target not in ATTENTION:
            a, b = _experts(config, a, b, turned)
            target, place = _which(config, a, b), "mlp.experts"
        name = f"layers.{layer}.{target}"
        if name in adapter:
            raise ValueError(f"{name} must have one adapter; got two; save it again.")
        adapter[name] = Factors(a, b, _scale(settings, f"model.layers.{layer}.{place}.{target}", a.shape[-2]))
    order = lambda name: (int(name.split(".")[1]), TARGETS.index(name.split(".")[2]))
    return {name: adapter[name] for name in sorted(adapter, key=order)}, unknown


def _turned(experts: list[Mapping[str, jax.Array]], settings: Mapping, config: Config) -> bool:
    """Whether experts' factors lead from a matrix' output to its input, which PEFT from 0.19 on does beside transformers before 5.

    Widths tell, but for a down_proj that is square and alone.
    """
    D, F = config.hidden_size, config.intermediate_size
    widths = {(sides["A"].shape[1], sides["B"].shape[0]) for sides in experts if sides.keys() == {"A", "B"}}
    straight, turned = {(D, 2 * F), (F, D)}, {(2 * F, D), (D, F)}
    told = {pair in turned for pair in widths if (pair in turned) != (pair in straight)}
    if told:
        return told == {True}
    version = re.match(r"(\d+)\.(\d+)", str(settings.get("peft_version") or "0.0"))
    if widths and version and (int(version[1]), int(version[2])) >= (0, 19):
        raise ValueError(
            f"an adapter on down_proj alone, {D} by {D}, does not tell which way its factors lead: PEFT {settings['peft_version']} writes "
            "either; train it on gate_up_proj too, or merge it with PEFT and load the result."
        )
    return False


def _experts(config: Config, a: jax.Array, b: jax.Array, turned: bool) -> tuple[jax.Array, jax.Array]:
    """PEFT's factors [E*r, in] and [out, r*E] as [E, r, in] and [E, out, r]."""
    E = config.num_local_experts
    if a.shape[0] % E or b.shape[1] != a.shape[0]:
        raise ValueError(
            f"factors of {E} experts must be [{E}*r, in] and [out, r*{E}]; got {a.shape} and {b.shape}; it is of another model."
        )
    a, b = a.reshape(E, -1, a.shape[1]), jnp.transpose(b.reshape(b.shape[0], -1, E), (2, 0, 1))
    return (b.swapaxes(1, 2), a.swapaxes(1, 2)) if turned else (a, b)


def _which(config: Config, a: jax.Array, b: jax.Array) -> str:
    """Which expert matrix factors belong to: PEFT's names do not tell, their widths do."""
    D, F = config.hidden_size, config.intermediate_size
    for target, widths in (("gate_up_proj", (D, 2 * F)), ("down_proj", (F, D))):
        if (a.shape[2], b.shape[1]) == widths:
            return target
    got = f"{a.shape[2]} to {b.shape[1]}"
    raise ValueError(f"factors of experts must lead from {D} to {2 * F}, or from {F} to {D}; got {got}; it is of another model.")


def _scale(settings: Mapping, module: str, rank: int) -> float:
    """alpha / r or alpha / sqrt(r), where a pattern may name another alpha: the first that ends the module's name, as PEFT has it."""
    patterns = settings.get("alpha_pattern") or {}
    alpha = next((alpha for key, alpha in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), settings.get("lora_alpha", 8))
    return alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)


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
