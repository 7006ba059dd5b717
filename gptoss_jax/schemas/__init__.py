"""JSON schemas as data: which schemas one holds, what a reference names, whether one is valid.

What a tool's parameters and an answer's form go through alike, before `harmony` shows them to the model and `grammar` holds it to them.
Knows neither of those two, nor tokens.
"""
