"""A plan before renting GPUs: what a model will need of some, found out without one. `python -m gptoss_jax.plan` prints it.

setting (which model, which GPUs) -> abstract (arrays without numbers) -> planning (compiles; memory, launches, collectives) <- floor
"""
