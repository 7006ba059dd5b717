"""The model as pure functions of (params, config, ...): what jit compiles.

Imports `config`, `parallel.sharding` and `pallas_kernels`. Knows arrays; no text, no requests, no files and no devices. One table, in
`params`, states every weight's shape.
"""
