"""Continuous batching: requests of token ids in, pieces of token ids out; slots, pages and three compiled programs between.

Imports `model`, `sampling` and `parallel`. Knows no tokenizer, no messages, no files. `requests`, `pages` and `live` know no jax;
`programs` alone touches the device; `engine` is the loop that all others serve.
"""
