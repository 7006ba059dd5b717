"""Sparse autoencoders as SAELens stores them: a directory of cfg.json and sae_weights.safetensors.

What a file asks for and is not computed here is refused by name, not ignored. Source: SAELens 6.54, which also reads what its versions
before 6 wrote.
"""

import json
import os
from pathlib import Path
import re

import jax.numpy as jnp
import numpy as np
from safetensors.flax import save_file

from gptoss_jax.config.fields import Field, Flag, Many, Text, Whole, read_json, take
from gptoss_jax.quoting import quoted
from gptoss_jax.research.sae.autoencoder import ARCHITECTURES, NORMALISATIONS, SAE, check
from gptoss_jax.weights import foreign, headers, safetensors
from gptoss_jax.weights.headers import Stored
from gptoss_jax.weights.orbax.whole import appearing
from gptoss_jax.weights.watching import Watch

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"
_MOST = 1 << 30  # of any size
_VERSION = "6.0.0"  # from which on files have this layout
_DTYPES = safetensors.FLOATS | {"F16": np.float32}  # as which a dtype of the files is held
_FLOATS = ("float32", "bfloat16", "float16")  # as SAELens calls them
_READ = {
    "d_in": Whole(1, _MOST),
    "d_sae": Whole(1, _MOST),
    "architecture": Text(default="standard"),
    "k": Whole(1, _MOST),
    "apply_b_dec_to_input": Flag(default=True),
    "normalize_activations": Field(default="none"),
    "reshape_activations": Text(default=None),
    "rescale_acts_by_decoder_norm": Flag(default=False),
    "metadata": Many(Field(), "entries", most=10_000, named=True, default={}),
}
_BEFORE_6 = {
    "activation_fn": Text(default=None),
    "activation_fn_str": Text(default=None),
    "activation_fn_kwargs": Many(Field(), "arguments", most=100, named=True, default={}),
    "hook_point": Text(default=None),
    "hook_name": Text(default=None),
    "hook_head_index": Whole(0, _MOST),
    "hook_point_head_index": Whole(0, _MOST),
}
_METADATA = {"hook_name": Text(default=None), "hook_head_index": Whole(0, _MOST), "sae_lens_version": Text(default=None)}
_TENSORS = {"W_enc": "w_enc", "W_dec": "w_dec", "b_dec": "b_dec"}
_OWN = {
    "standard": {"b_enc": "b_enc"},
    "topk": {"b_enc": "b_enc"},
    "jumprelu": {"b_enc": "b_enc", "threshold": "threshold"},
    "gated": {"b_gate": "b_enc", "r_mag": "r_mag", "b_mag": "b_mag"},
}


def load(directory: str | os.PathLike, *, dtype=None) -> SAE:
    """The sparse autoencoder of a directory that SAELens wrote.

    Args:
        directory: with cfg.json and sae_weights.safetensors.
        dtype: of the weights; None is the files' own, float16 as float32.

    Raises:
        FileNotFoundError: a file is missing; what there is is said.
        ValueError: it asks for what is not computed here, tensors are missing, of another shape or not finite, or a file is damaged.
    """
    directory = foreign.path_of(directory, "a sparse autoencoder")
    if dtype is not None and str(getattr(dtype, "dtype", getattr(dtype, "__name__", dtype))) not in _FLOATS:
        raise ValueError(f"dtype must be {' or '.join(_FLOATS)}; got {quoted(dtype, 60)}; leave it out for the files' own.")
    _check_files(directory)
    settings = _settings(directory / CONFIG)
    path = directory / WEIGHTS
    stored = {each.name: each for each in headers.header(path)}
    names = _TENSORS | _OWN[settings["architecture"]]
    _check_tensors(stored, names, settings, path)
    watch = Watch(finite=True, remedy="save it again from a training that did not diverge")
    read = lambda each: jnp.asarray(safetensors.read(each, _DTYPES[each.dtype], watch=watch), None if dtype is None else jnp.dtype(dtype))
    weights = {names[name]: read(each) for name, each in stored.items() if name in names}
    if "scaling_factor" in stored and not (safetensors.read(stored["scaling_factor"], np.float32) == 1).all():
        raise ValueError(f"{path} must have no scaling_factor other than 1; got one; fold it into W_dec and save it again.")
    return SAE(
        **weights,
        architecture=settings["architecture"],
        k=settings["k"] if settings["architecture"] == "topk" else None,
        b_dec_first=settings["apply_b_dec_to_input"],
        normalisation=settings["normalize_activations"],
        by_decoder_norm=settings["rescale_acts_by_decoder_norm"],
        heads=settings["heads"],
        hook_name=settings["hook_name"],
    )


def save(sae: SAE, directory: str | os.PathLike, *, model_name: str | None = None) -> None:
    """Writes an SAE as SAELens does; its `SAE.load_from_disk` reads it. The directory appears whole or not at all.

    Args:
        directory: what to make; there must be nothing of that name, or an empty directory.
        model_name: what the files shall name as the model that it was trained on.
    """
    check(sae)
    if not isinstance(model_name, str | None):
        raise ValueError(f"model_name must be a text; got {quoted(model_name, 60)}; leave it out for none.")
    if str(sae.w_enc.dtype) not in _FLOATS:
        raise ValueError(f"the weights of an SAE must be {' or '.join(_FLOATS)}; got {sae.w_enc.dtype}; convert them.")
    names = _TENSORS | _OWN[sae.architecture]
    if broken := [own for own in names.values() if not jnp.isfinite(getattr(sae, own)).all()]:
        raise ValueError(f"the weights of an SAE must be finite; got NaN or infinity in {', '.join(broken)}; train it again.")
    settings = {
        "architecture": sae.architecture,
        "d_in": sae.d_in,
        "d_sae": sae.d_sae,
        "dtype": str(sae.w_enc.dtype),
        "device": "cpu",
        "apply_b_dec_to_input": sae.b_dec_first,
        "normalize_activations": sae.normalisation,
        "reshape_activations": "hook_z" if sae.heads else "none",
        "metadata": {"sae_lens_version": _VERSION, "hook_name": sae.hook_name, "model_name": model_name},
    }
    if sae.architecture == "topk":
        settings |= {"k": sae.k, "rescale_acts_by_decoder_norm": sae.by_decoder_norm}
    with appearing(directory) as partial:
        save_file({name: jnp.asarray(getattr(sae, own), sae.w_enc.dtype) for name, own in names.items()}, partial / WEIGHTS)
        (partial / CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _check_files(directory: Path) -> None:
    """Raises FileNotFoundError where there is no SAE, ValueError where there is a file; both say what there is."""
    must = f"{directory} must be a directory with {CONFIG} and {WEIGHTS}, as SAELens' save_model writes them"
    if not os.path.isdir(directory):
        if os.path.exists(directory):
            raise ValueError(f"{must}; it is a file; {foreign.of_file(directory, directory.name)}.")
        raise FileNotFoundError(f"{must}; there is no such directory; check the path.")
    missing = [name for name in (CONFIG, WEIGHTS) if not os.path.lexists(directory / name)]
    if not missing:
        return
    inner = [name for name in foreign.names_in(directory) if os.path.lexists(directory / name / CONFIG)]
    if len(missing) == 2 and inner:
        raise FileNotFoundError(f"{must}; it holds {len(inner)} in its subdirectories; pass one of them, such as {directory / inner[0]}.")
    raise FileNotFoundError(f"{must}; {' and '.join(missing)} absent, {foreign.held(directory)}; save the SAE again.")


def _settings(path: Path) -> dict:
    """What cfg.json says of what is computed; refuses what is not."""
    values = read_json(path)
    settings = take(values, _READ, path)
    told = take(settings["metadata"], _METADATA, f"metadata in {path}")
    settings |= {"hook_name": told["hook_name"], "head": told["hook_head_index"], "activation_fn": "relu"}
    if not _of_6(told["sae_lens_version"] or values.get("sae_lens_version")):
        settings |= _before_6(values, settings, path)
    reshape = settings["reshape_activations"] or "none"
    if problems := _problems(settings, reshape):
        raise ValueError(f"{path} must be of an SAE that is computed here; {'; '.join(problems)}; take another.")
    return settings | {"heads": reshape == "hook_z"}


def _of_6(version: object) -> bool:
    """Whether a version of SAELens writes the layout that there has been since."""
    major = version.split(".")[0] if isinstance(version, str) else ""
    return re.fullmatch(r"[0-9]{1,6}", major) is not None and int(major) >= 6


def _before_6(values: dict, settings: dict, path: Path) -> dict:
    """What older files say in other words."""
    old = take(values, _BEFORE_6, path)
    found = {"hook_name": settings["hook_name"] or old["hook_name"] or old["hook_point"]}
    heads = (settings["head"], old["hook_head_index"], old["hook_point_head_index"])
    found["head"] = next((head for head in heads if head is not None), None)
    found["activation_fn"] = old["activation_fn"] or old["activation_fn_str"] or "relu"
    if found["activation_fn"] == "topk":
        kept = take(old["activation_fn_kwargs"], {"k": Whole(1, _MOST)}, f"activation_fn_kwargs in {path}")
        found |= {"architecture": "topk", "k": kept["k"] or settings["k"]}
    if settings["reshape_activations"] is None and "hook_z" in (found["hook_name"] or ""):
        found["reshape_activations"] = "hook_z"
    if isinstance(settings["normalize_activations"], bool):
        found["normalize_activations"] = "expected_average_only_in" if settings["normalize_activations"] else "none"
    return found


def _problems(settings: dict, reshape: str) -> list[str]:
    """What is not computed here, and what is no SAE."""
    kind, norm, activation = (settings[name] for name in ("architecture", "normalize_activations", "activation_fn"))
    found = [f"{name} is absent" for name in ("d_in", "d_sae") if settings[name] is None]
    if kind not in ARCHITECTURES:
        found.append(f"architecture is {quoted(kind, 60)}, must be {', '.join(ARCHITECTURES)}")
    if norm not in NORMALISATIONS:
        folded = " (SAELens folds it into the weights)" if norm in ("expected_average_only_in", "covariance_whitening") else ""
        found.append(f"normalize_activations is {quoted(norm, 60)}, must be {', '.join(NORMALISATIONS)}{folded}")
    if activation not in ("relu", "topk"):
        found.append(f"activation_fn is {quoted(activation, 60)}, must be relu or topk")
    if reshape not in ("none", "hook_z"):
        found.append(f"reshape_activations is {quoted(reshape, 60)}, must be none or hook_z")
    if settings["head"] is not None:
        found.append(f"hook_head_index is {settings['head']}, must be absent: an SAE of one head is not applied here")
    if kind == "topk" and not 1 <= (settings["k"] or 0) <= (settings["d_sae"] or 0):
        found.append(f"k is {quoted(settings['k'])}, must be a number of features from 1 to d_sae")
    if kind != "topk" and settings["rescale_acts_by_decoder_norm"]:
        found.append("rescale_acts_by_decoder_norm is true, which only topk has")
    return found


def _check_tensors(stored: dict[str, Stored], names: dict[str, str], settings: dict, path: Path) -> None:
    """By headers: those of the architecture, each of its shape."""
    d_in, d_sae, kind = settings["d_in"], settings["d_sae"], settings["architecture"]
    shapes = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    missing = [name for name in names if name not in stored]
    if missing:
        got = quoted(", ".join(sorted(stored)[:8]))[1:-1] or "none"
        raise ValueError(f"the tensors in {path} must be those of a {kind} SAE; {', '.join(missing)} absent, got {got}; save it again.")
    others = [name for name in stored if name not in names and name != "scaling_factor"]
    if others:
        got = quoted(", ".join(sorted(others)[:5]))[1:-1]
        raise ValueError(f"the tensors in {path} must be those of a {kind} SAE; got also {got}; save it again.")
    for name in names:
        wanted, each = shapes.get(name, (d_sae,)), stored[name]
        if each.shape != wanted or each.dtype not in _DTYPES:
            raise ValueError(
                f"{name} in {path} must be {list(wanted)} of {', '.join(_DTYPES)} by its {CONFIG}; got {list(each.shape)} of "
                f"{each.dtype}; save it again."
            )
