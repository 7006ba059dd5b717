"""The device's side of the engine: what is compiled, the state that programs hand on, and whether there is room for it.

`decode` is the programs as pure functions, `programs` compiles and calls them, `shared` keeps them for engines of one shape, `lowered` for
the next start. `weights` puts others in the place of those that they are called with.
"""
