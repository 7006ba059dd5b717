"""The device's side of the engine: what is compiled, the state that programs hand on, and whether there is room for it.

`decode` is the programs as pure functions, `programs` compiles and calls them, `lowered` keeps them for the next start.
"""
