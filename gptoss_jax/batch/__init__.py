"""Batch jobs: a file of requests in, a file of results out, whatever happens in between. Entry points: `__main__` and `merge`."""
