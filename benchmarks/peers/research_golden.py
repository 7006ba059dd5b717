"""What Hugging Face transformers and PEFT say of the inside of a small checkpoint: the golden data of the research surface.

Stands alone: needs torch, transformers, peft, safetensors and numpy, not this project. The model runs on the CPU in float32, its experts
dequantised, with eager attention and eager experts. Everything is drawn from a fixed seed.

    python benchmarks/peers/research_golden.py --checkpoint=tests/data/tiny

Reads the first --tokens tokens of golden.npz in the checkpoint, and writes three things there, in place of what there was:
  research.npz     residual streams, routers, experts, attention, sinks, logits, gradients, and logits under each adapter. Arrays named
                   grad.* are stored with 16 bits of significand, a relative error of 8e-6 at most, so that they compress
  adapter          a LoRA adapter of attention and of the experts' parameters, saved by PEFT
  adapter_rslora   one of attention alone, with rank-stabilised scaling and with another rank and alpha in one layer
"""

import argparse
from collections.abc import Callable, Iterator
import contextlib
import copy
import json
from pathlib import Path
import tempfile

import numpy as np
from peft import LoraConfig, PeftModel, get_peft_model
import torch
from torch.overrides import TorchFunctionMode
from transformers_decode import choose, load

ADAPTERS = {
    "adapter": {
        "r": 3,
        "lora_alpha": 12,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"],
        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
    },
    "adapter_rslora": {
        "r": 2,
        "lora_alpha": 4,
        "use_rslora": True,
        "target_modules": ["q_proj", "o_proj"],
        "rank_pattern": {"layers.2.self_attn.q_proj": 5},
        "alpha_pattern": {"layers.2.self_attn.q_proj": 3},
    },
}
SCALE = 0.02  # of lora_B: the adapters move logits by some ten per cent
EVERY_LAYER = ("self_attn.q_proj.weight", "self_attn.sinks", "mlp.router.weight", "mlp.router.bias")
ENDS = (  # gradients of the first and the last layer alone
    "self_attn.k_proj.bias",
    "self_attn.o_proj.weight",
    "mlp.experts.gate_up_proj_bias",
    "mlp.experts.down_proj_bias",
    "input_layernorm.weight",
)


class SinkMass(TorchFunctionMode):
    """Keeps the last column of each softmax of attention, which is the sink's: [1, heads, tokens] of each layer in turn."""

    def __init__(self):
        super().__init__()
        self.layers: list[torch.Tensor] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        if function is torch.nn.functional.softmax and out.ndim == 4:
            self.layers.append(out[..., -1].detach())
        return out


@contextlib.contextmanager
def hooked(hooks: list[tuple[torch.nn.Module, bool, Callable]]) -> Iterator[None]:
    """Hooks of modules, each before its forward (True) or after it, for as long as the block runs."""
    handles = [module.register_forward_pre_hook(f) if before else module.register_forward_hook(f) for module, before, f in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def gradients_of(layers: int) -> list[str]:
    """Names of the parameters whose gradients are stored."""
    names = [f"model.layers.{i}.{name}" for i in range(layers) for name in EVERY_LAYER]
    names += [f"model.layers.{i}.{name}" for i in (0, layers - 1) for name in ENDS]
    return ["model.embed_tokens.weight", *names]


def shorten(x: torch.Tensor) -> torch.Tensor:
    """The nearest numbers with 16 bits of significand."""
    return ((x.contiguous().view(torch.int32) + 0x80) & ~0xFF).view(torch.float32)


def inside(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    """Everything of the model itself: one forward, and one backward of the log-probability of the tokens that follow."""
    body = model.model
    residuals: list[torch.Tensor] = []  # what goes into each layer, and into the final norm
    routers: list[tuple[torch.Tensor, ...]] = []  # logits, weights, experts

    def keep_residual(module, args):
        args[0].retain_grad()
        residuals.append(args[0])

    hooks = [(module, True, keep_residual) for module in (*body.layers, body.norm)]
    hooks += [(layer.mlp.router, False, lambda module, args, out: routers.append(out)) for layer in body.layers]
    with hooked(hooks), SinkMass() as sinks:
        out = model(ids, output_hidden_states=True, output_attentions=True, output_router_logits=True, use_cache=False)
    logits = out.logits[0]
    logits[:-1].log_softmax(-1).gather(-1, ids[0, 1:, None]).sum().backward()

    weights = torch.cat(out.attentions)
    result = {
        "hidden_states": torch.cat(out.hidden_states),
        "last_residual": residuals[-1][0],
        "router_logits": torch.stack([logits for logits, _, _ in routers]),
        "experts": torch.stack([experts for _, _, experts in routers]),
        "attentions": weights,
        "sink_mass": torch.cat(sinks.layers),
        "logits": logits,
        "grad_residual": torch.cat([x.grad for x in residuals[:-1]]),
    }
    assert all(torch.equal(kept, told) for kept, told in zip(residuals[:-1], out.hidden_states[:-1], strict=True))
    assert torch.equal(result["router_logits"], torch.stack(list(out.router_logits)))
    assert torch.equal(result["experts"], result["router_logits"].topk(result["experts"].shape[-1]).indices)
    assert (weights.sum(-1) + result["sink_mass"] - 1).abs().max() < 1e-5
    parameters = dict(model.named_parameters())
    result |= {f"grad.{name}": shorten(parameters[name].grad) for name in gradients_of(len(body.layers))}
    return {name: x.detach() for name, x in result.items()}


@torch.no_grad()
def adapt(model: torch.nn.Module, settings: dict, seed: int) -> PeftModel:
    """A copy of the model under an adapter of random factors."""
    adapted = get_peft_model(copy.deepcopy(model), LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, factor in adapted.named_parameters():
        if "lora_" in name:
            factor.normal_(std=factor.shape[-1] ** -0.5 if "lora_A" in name else SCALE, generator=generator)
    return adapted


def save(adapted: PeftModel, directory: Path) -> None:
    """PEFT's two files of an adapter, without its model card and without paths of this machine; lists in order."""
    adapted.peft_config["default"].base_model_name_or_path = "tiny"
    directory.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        adapted.save_pretrained(scratch, save_embedding_layers=False)
        directory.joinpath("adapter_model.safetensors").write_bytes(Path(scratch, "adapter_model.safetensors").read_bytes())
        config = json.loads(Path(scratch, "adapter_config.json").read_text(encoding="utf-8"))
    config = {key: sorted(value) if key.startswith("target_") and value else value for key, value in config.items()}
    directory.joinpath("adapter_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def under_adapter(model: torch.nn.Module, ids: torch.Tensor, directory: Path, seed: int) -> torch.Tensor:
    """Writes an adapter and returns the logits under it, which loading and merging must reproduce."""
    adapted = adapt(model, ADAPTERS[directory.name], seed)
    logits = adapted(ids, use_cache=False).logits[0]
    save(adapted, directory)
    loaded = PeftModel.from_pretrained(copy.deepcopy(model), directory).eval()(ids, use_cache=False).logits[0]
    merged = adapted.merge_and_unload()(ids, use_cache=False).logits[0]
    plain = model(ids, use_cache=False).logits[0]
    away = lambda x, y: float((x - y).norm() / y.norm())
    print(f"{directory.name} moves logits by {away(logits, plain):.3f}; merged, they are within {away(merged, logits):.1e}")
    assert away(loaded, logits) == 0 and away(merged, logits) < 1e-4 and 0.05 < away(logits, plain) < 0.5
    return logits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="directory of a small checkpoint with golden.npz")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--seed", type=int, default=7)
    args = parser.parse_args()
    directory = Path(args.checkpoint)
    tokens = np.load(directory / "golden.npz")["tokens"][: args.tokens]
    ids = torch.tensor(tokens, dtype=torch.long)[None]
    model = load(str(directory)).float()
    choose(model, "eager", "eager")

    result = inside(model, ids)
    for i, name in enumerate(ADAPTERS):
        result[f"{name}_logits"] = under_adapter(model, ids, directory / name, args.seed + i)
    arrays = {name: x.numpy() for name, x in result.items()}
    arrays = {name: x.astype(np.int32) if x.dtype == np.int64 else x for name, x in arrays.items()}
    np.savez_compressed(directory / "research.npz", tokens=tokens, **arrays)
    for name, x in arrays.items():
        print(name, x.shape, x.dtype)


if __name__ == "__main__":
    main()
