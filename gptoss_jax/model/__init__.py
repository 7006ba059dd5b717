"""The model as pure functions of (params, config, ...): what jit compiles. Knows arrays, not text."""
