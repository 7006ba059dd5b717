"""Any checkpoint to `Params` on devices, and back: where it lies, what its tensors are called, how each reaches its device.

Imports `model`, `parallel` and `tokenizer`. Knows files and arrays; no requests and no sampling. Orbax is imported in `orbax` only.
"""
