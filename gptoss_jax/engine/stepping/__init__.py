"""The rounds of an engine: prompts read, steps asked for, what they drew looked at, and every request told what has become of it.

Knows scheduling, the device's programs and readers' outlets; no threads and no callers.
"""
