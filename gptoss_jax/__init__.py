"""gpt-oss in JAX: `load` a published checkpoint, `LLM` to ask it, `forward` to study it.

A public name is imported when it is first used, from where `__init__.pyi` says: whoever needs one does not wait for all.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
