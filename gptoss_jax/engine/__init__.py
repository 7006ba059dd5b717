"""Continuous batching: requests of token ids in, pieces of token ids out; slots, pages and three compiled programs between.

    engine (what callers see) -> thread (inbox, one thread) -> rounds (who is open, who is told what) -> steps (a round's work)
                readers (how pieces come back)                    changes (its weights; whether it sleeps)
                                                                  steps -> scheduler -> live -> pages; fence, exchange; device/

Imports `model`, `sampling` and `parallel`. Knows no tokenizer, no messages, no files. `requests`, `pages`, `live` and `metrics` know no
jax; `device/` alone touches the device.
"""
