"""Hooks of requests: what is asked of the inside while tokens are drawn.

    hook (what a caller says) -> kinds (what is static of it, and what is data) -> looking (one request's, on its way)

The programs are in `engine.device` (`hooked`, `of_hooks`). No jax.
"""
