"""What becomes of a request, in text: a task to requests of tokens, and pieces of tokens to a continuation or the assistant's turn.

Imports `harmony`, `grammar`, `sampling.options` and the engine's `requests`. Knows messages and token ids; no arrays of a device and,
but for `tasks`, `replays`, `running` and `streams`, which run what they are given, no engine.
"""
