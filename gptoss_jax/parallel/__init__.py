"""Where arrays lie on a mesh of devices, and what several processes that share one must agree on.

Imports jax only; knows logical axes, no weights and no requests. `launch` alone reads flags, for the entry points that import it.
"""
