"""OpenAI's protocol, apart from any wire: bodies of requests to Tasks, what comes of these to bodies and events. Knows no jax.

Batch files and the server are its two users. They differ in nothing but what they pass in: how a body is read (`asked.Reading`) and what
objects are called (`told.Told`).
"""
