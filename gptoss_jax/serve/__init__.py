"""A server that speaks OpenAI's protocol: `python -m gptoss_jax.serve`. Needs the extra `serve`: Starlette and uvicorn.

The protocol itself is `gptoss_jax.openai`; here is what goes on around it: connections, keys, limits, streams, what is kept, the end.
"""
