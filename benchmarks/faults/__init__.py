"""That nobody can see the other requests, as commands that can say no: bits beside another commit, many streams, and a storm of faults.

What all of them ask is nano, on whatever device JAX has; they import the package as a script would, and work on any commit that has its
public API. To try one on another commit: `PYTHONPATH=THAT_CHECKOUT:THIS_CHECKOUT python -P -m benchmarks.faults.streams`.
"""
