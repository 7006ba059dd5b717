"""Continuous batching: requests of token ids in, pieces of token ids out; slots, pages and three compiled programs between.

    engine (what callers see) -> thread (inbox, one thread) -> stepping/ (rounds: who is told what; steps: a round's work)
        source, readers (how requests go in and pieces come back)            -> scheduling/ (who has which slot and pages)
        changes (its weights; whether it sleeps)                              -> device/ (programs and their state)

Imports `model`, `sampling` and `parallel`. Knows no tokenizer, no messages, no files. `requests`, `metrics`, `hooks/` and most of
`scheduling/` know no jax; `device/` alone touches the device.
"""
