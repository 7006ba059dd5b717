"""The machine that runs instructions: memory and its order, warps, barriers, bulk copies, wgmma. Knows no jax."""
