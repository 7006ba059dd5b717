"""What a launch would take on a Hopper that is not there: *predicted*, from what the emulator counts and the compiler says, never measured.

`chip` has the figures of the GPUs and where they are from, `counts` what a kernel's blocks do, `sass` what ptxas makes of each PTX
instruction, `clock` and `simulate` when the blocks of one multiprocessor do it, `model` a launch's time and what binds it, `cases` that of
the named shapes or of any function; `table` what was written down, `step` and `chain` whole steps.
"""
