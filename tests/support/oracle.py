"""gpt-oss in float64 NumPy, from the published tensors on: read it as the formula. Shares no code with the engine."""

import json
import math
from pathlib import Path

import numpy as np

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def tensors(directory: Path) -> dict[str, np.ndarray]:
    """Every tensor of a Hugging Face directory by its published name, float64 or uint8."""
    out = {}
    for file in sorted(directory.glob("*.safetensors")):
        data = file.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            raw = np.frombuffer(data, np.uint8, end - begin, start + begin)
            if entry["dtype"] == "BF16":
                raw = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32).astype(np.float64)
            elif entry["dtype"] == "F32":
                raw = raw.view("<f4").astype(np.float64)
            out[name] = raw.reshape(entry["shape"])
    return out


def forward(weights: dict[str, np.ndarray], config, tokens: np.ndarray) -> np.ndarray:
    """Logits [T, V] of one sequence [T]."""
    x = weights["model.embed_tokens.weight"][tokens]
    age = np.arange(len(tokens))[:, None] - np.arange(len(tokens))[None, :]
    cos, sin = rope_tables(config, np.arange(len(tokens)))
    for i, kind in enumerate(config.layer_types):
        w = {name.removeprefix(f"model.layers.{i}."): value for name, value in weights.items() if f".layers.{i}." in name}
        visible = (age >= 0) & (age < (config.sliding_window if kind == "sliding_attention" else len(tokens)))
        h = rms_norm(x, w["input_layernorm.weight"], config)
        q, k, v = (linear(w, f"self_attn.{p}_proj", h).reshape(len(h), -1, config.head_dim) for p in "qkv")
        heads = attention(rotate(q, cos, sin), rotate(k, cos, sin), v, w["self_attn.sinks"], visible)
        x = x + linear(w, "self_attn.o_proj", heads.reshape(len(h), -1))
        h = rms_norm(x, w["post_attention_layernorm.weight"], config)
        experts, gates = route(linear(w, "mlp.router", h), config.num_experts_per_tok)
        gate_up, down = (unpack(w[f"mlp.experts.{p}_proj_blocks"], w[f"mlp.experts.{p}_proj_scales"]) for p in ("gate_up", "down"))
        biases = w["mlp.experts.gate_up_proj_bias"], w["mlp.experts.down_proj_bias"]
        x = x + moe(h, experts, gates, gate_up, biases[0], down, biases[1], config.swiglu_limit, config.swiglu_alpha)
    return rms_norm(x, weights["model.norm.weight"], config) @ weights["lm_head.weight"].T


def linear(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def rms_norm(x: np.ndarray, gain: np.ndarray, config) -> np.ndarray:
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.rms_norm_eps) * gain


def rope_tables(config, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cosines and sines [T, H/2] by YaRN: fast pairs keep their wavelength, slow ones are stretched, a ramp lies between."""
    dim, theta, original = config.head_dim, config.rope_theta, config.rope_original_context
    wavelength = 2 * np.pi * theta ** (np.arange(0, dim, 2) / dim)
    betas = (config.rope_beta_fast, config.rope_beta_slow)  # turns within the original context
    ends = [dim * math.log(original / (beta * 2 * math.pi)) / (2 * math.log(theta)) for beta in betas]
    if config.rope_truncate:
        ends = [math.floor(ends[0]), math.ceil(ends[1])]
    stretched = np.clip((np.arange(dim // 2) - ends[0]) / (ends[1] - ends[0]), 0, 1)
    turns = (1 - stretched) / wavelength + stretched / (wavelength * config.rope_factor)
    angle = 2 * np.pi * positions[:, None] * turns[None, :]
    concentration = 0.1 * math.log(config.rope_factor) + 1
    return np.cos(angle) * concentration, np.sin(angle) * concentration


def rotate(x: np.ndarray, cos: np.ndarray, sin: np.ndarray) -> np.ndarray:
    """x [T, heads, H]: its halves are the real and imaginary parts of H/2 numbers that turn."""
    half = x.shape[-1] // 2
    turned = (x[..., :half] + 1j * x[..., half:]) * (cos + 1j * sin)[:, None, :]
    return np.concatenate([turned.real, turned.imag], -1)


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, sinks: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """q [T, N, H], k and v [S, K, H], sinks [N], visible [T, S] -> [T, N, H]. One head at a time."""
    out = np.zeros(q.shape)
    for n in range(q.shape[1]):
        kv = n // (q.shape[1] // k.shape[1])
        scores = np.where(visible, q[:, n] @ k[:, kv].T / math.sqrt(q.shape[2]), -np.inf)
        weights = np.exp(np.concatenate([scores, np.full((len(q), 1), sinks[n])], 1) - np.maximum(scores.max(1), sinks[n])[:, None])
        out[:, n] = (weights / weights.sum(1, keepdims=True))[:, :-1] @ v[:, kv]
    return out


def route(logits: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The `count` experts with the highest logits, and the softmax over those alone: two of [T, A]."""
    experts = np.argsort(-logits, axis=-1, kind="stable")[:, :count]
    chosen = np.exp(np.take_along_axis(logits, experts, -1) - logits.max(-1, keepdims=True))
    return experts, chosen / chosen.sum(-1, keepdims=True)


def moe(x, experts, gates, gate_up, gate_up_bias, down, down_bias, limit, alpha=1.702) -> np.ndarray:
    """x [M, D], experts and gates [M, A] -> [M, D]. One token and expert at a time; an index of E or more is not routed."""
    out = np.zeros(x.shape)
    for token, slot in np.ndindex(experts.shape):
        e = experts[token, slot]
        if e < len(gate_up):
            h = gate_up[e] @ x[token] + gate_up_bias[e]
            glu, line = np.minimum(h[0::2], limit), np.clip(h[1::2], -limit, limit)
            act = glu / (1 + np.exp(-alpha * glu)) * (line + 1)
            out[token] += gates[token, slot] * (down[e] @ act + down_bias[e])
    return out


def unpack(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """MXFP4 blocks [..., X, 16] and scales [..., X] -> float64 [..., 32 X], low nibble first."""
    codes = np.stack([blocks & 15, blocks >> 4], -1).reshape(*scales.shape, 32)
    return (E2M1[codes] * 2.0 ** (scales.astype(int) - 127)[..., None]).reshape(*scales.shape[:-1], -1)


def error(got, wanted) -> float:
    """Relative error: the norm of the difference over the norm of what is wanted."""
    got, wanted = np.asarray(got, np.float64), np.asarray(wanted, np.float64)
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))
