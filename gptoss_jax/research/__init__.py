"""What a researcher asks of the model beside generation: log-probabilities of given tokens, lenses on captured values, plots.

Imports `model` and the engine's programs; `plots` takes host arrays. Knows token ids, no messages.
"""
