"""PTX: its syntax, its arithmetic, and a kernel's instructions as functions. Knows no jax."""
