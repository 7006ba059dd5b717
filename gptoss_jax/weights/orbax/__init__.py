"""Orbax directories: checkpoints written piece by piece, whole or not at all, and read onto any mesh.

`store` knows what such a directory must hold, `whole` lets it appear at once, `saving` writes one and `sums` its checksums, `restoring`
reads its arrays, chunk by chunk (`chunks`).
Imports `forms`, `locate`, `model` and `parallel`; knows no published layout. The only wing that imports Orbax and TensorStore.
"""
