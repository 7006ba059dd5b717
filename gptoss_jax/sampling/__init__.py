"""From logits to a token: what a caller may ask (`options`, `ids`), that as arrays (`state`), and the draw on device (`filters`, `draw`).

Imports `parallel`, and in those two nothing at all. Knows logits [B, V] and token ids; no model, no text, no slots.
"""
