"""What a request brings is asked here, where its faults end that request and touch no other. No arrays of the device."""

import numpy as np

from gptoss_jax.engine.scheduling.live import Live
from gptoss_jax.quoting import MOST, said


def mask(live: Live, allowed: np.ndarray) -> str | None:
    """Asks a guided request what may come next; returns why it must end, or None.

    Args:
      allowed: [ceil(V / 32)] uint32, written to. Whether that holds for one token only is kept in `live.single`.
    """
    constraint = live.request.constraint
    try:
        live.single = bool(constraint.mask(allowed))
        problem = _problem(constraint)
    except BaseException as error:  # also a library's panic, which is no Exception; in this thread nobody interrupts
        return _failed(error)
    return problem or (None if allowed.any() else "its constraint must allow some token, and allowed none.")


def advance(live: Live, tokens: list[int]) -> tuple[int, str | None]:
    """Tells a guided request of its tokens; returns how many of them it took, and why it must end there, or None."""
    constraint = live.request.constraint
    for i, token in enumerate(tokens):
        try:
            constraint.advance(token)
            problem = _problem(constraint)
        except BaseException as error:
            return i, _failed(error)
        if problem:
            return i, problem
    return len(tokens), None


def _problem(constraint) -> str | None:
    problem = getattr(constraint, "problem", "")
    return f"its form could not be followed to the end: {str(problem)[:MOST]}." if problem else None


def _failed(error: BaseException) -> str:
    return f"its constraint failed: {said(error)}."
