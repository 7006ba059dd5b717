"""One command for whoever has a Hopper GPU for eight minutes: what is worth most is measured first, and nothing is measured twice.

    python -m benchmarks.gpu_day --out=DIR

`pieces` says what is measured and in which order, `running` does one in a process with a time limit, `report` makes tables of it.
"""
