"""What a launch would take on a Hopper that is not there: *predicted*, from what the emulator counts and the compiler says, never measured.

`chip` has the figures of the GPUs and where they are from, `counts` what a kernel's blocks do, `model` makes seconds of both.
"""
