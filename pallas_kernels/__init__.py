"""Operations as arrays in, arrays out: each a formula in jnp and, where it pays, a GPU kernel. Knows jax, nothing of gpt-oss."""
