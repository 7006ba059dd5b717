"""That nobody can see the other requests, as commands that can say no: bits beside another commit, many streams, and a storm of faults.

All of them ask nano, on whatever device JAX has. `bits` and `streams` know the public API alone, so that they run on an older commit too:
`PYTHONPATH=THAT_CHECKOUT:THIS_CHECKOUT python -P -m benchmarks.faults.streams`.
"""
