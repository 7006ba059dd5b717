"""What TransformerLens keeps of a small checkpoint, and what SAELens computes: golden data of sites' names and of sparse autoencoders.

Stands alone: needs torch, transformers, transformer-lens, sae-lens and numpy, not this project. Made with transformer-lens 3.9.0 and
sae-lens 6.54.12 on Python 3.11. Everything is drawn from a fixed seed.

    python benchmarks/peers/lens_golden.py --checkpoint=tests/data/tiny --saes=tests/data/sae

Writes, in place of what there was:
  transformer_lens.npz     in the checkpoint: under TransformerLens' own names, every value that a pass of the first --layers layers keeps
  ARCHITECTURE             in --saes, one each: a random SAE as save_model writes it, as wide as the checkpoint, and beside it golden.npz:
                           values, their features, and what is made of them
"""

import argparse
from pathlib import Path
import tempfile
import warnings

import numpy as np
from sae_lens import (
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
)
from sae_lens.saes.sae import SAEMetadata
from tokenizers import Tokenizer, models
import torch
from transformer_lens.model_bridge.bridge import TransformerBridge
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

SAES = {
    "standard": (StandardSAE, StandardSAEConfig, {}),
    "gated": (GatedSAE, GatedSAEConfig, {"apply_b_dec_to_input": False}),
    "jumprelu": (JumpReLUSAE, JumpReLUSAEConfig, {"normalize_activations": "layer_norm"}),
    "topk": (
        TopKSAE,
        TopKSAEConfig,
        {"k": 9, "rescale_acts_by_decoder_norm": True, "normalize_activations": "constant_norm_rescale"},
    ),
}


def write_tokenizer(folder: str, size: int) -> None:
    """One that splits nothing: the bridge wants one, and it is not asked."""
    words = models.WordLevel({f"t{i}": i for i in range(size)}, unk_token="t0")
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(words), bos_token="t0", eos_token="t0", pad_token="t0").save_pretrained(folder)


def kept(directory: str, layers: int, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Every value of a pass by its name, and the logits."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="eager")
    del model.model.layers[layers:]
    model.config.num_hidden_layers = layers
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(folder, model.config.vocab_size)
        options = {"hf_model": model, "tokenizer": AutoTokenizer.from_pretrained(folder), "device": "cpu", "dtype": torch.float32}
        bridge = TransformerBridge.boot_transformers("openai/gpt-oss-20b", **options)
    ids = torch.tensor(tokens, dtype=torch.long)
    logits, cache = bridge.run_with_cache(ids)
    bridge.set_use_attn_result(True)  # what each head adds, in place of what their sum comes from
    cache = dict(bridge.run_with_cache(ids)[1].items()) | dict(cache.items())
    values = {name: value.detach().numpy() for name, value in cache.items() if value.dtype == torch.float32}
    return {"logits": logits.detach().numpy(), "tokens": tokens, **values}


def write_sae(directory: Path, width: int, features: int, seed: int) -> None:
    torch.manual_seed(seed)
    make, config, options = SAES[directory.name]
    metadata = SAEMetadata(hook_name="blocks.1.hook_resid_post", model_name="tiny")
    sae = make(config(d_in=width, d_sae=features, metadata=metadata, **options))
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.3 if name.startswith("W_") else 0.2))
        if directory.name == "jumprelu":
            sae.threshold.copy_(torch.rand(features))
        x = 2 * torch.randn(2, 3, width)
        sae.save_model(directory)
        found = sae.encode(x)
        arrays = {"x": x, "features": found, "reconstruction": sae.decode(found)}
    np.savez_compressed(directory / "golden.npz", **{name: value.numpy() for name, value in arrays.items()})
    print(f"{directory.name}: {float((found > 0).float().mean()):.2f} of the features are active")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", required=True, help="directory of a small checkpoint")
    parser.add_argument("--saes", required=True, help="directory of the sparse autoencoders")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=5)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    tokens = np.random.default_rng(0).integers(0, 320, (3, 24), np.int32)[:1, : args.tokens]  # of tests/support/recorded_pass.py
    values = kept(args.checkpoint, args.layers, tokens)
    np.savez_compressed(Path(args.checkpoint) / "transformer_lens.npz", **values)
    for name, value in values.items():
        print(name, value.shape)
    for seed, name in enumerate(SAES):
        write_sae(Path(args.saes) / name, values["hook_embed"].shape[-1], 128, seed)


if __name__ == "__main__":
    main()
