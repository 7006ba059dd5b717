"""What a researcher asks of the model beside generation, a room or a file for each: log-probabilities of given tokens (`scoring`, which
drives the engine's programs), lenses on captured values, patches over a grid (`patching`), sparse autoencoders (`sae`).

Knows token ids, no messages. `plots` draws host arrays, `activations` keeps them on a disk, `display` shows trees in notebooks; what these
need (Matplotlib, Treescope) is imported where it is used.
"""
