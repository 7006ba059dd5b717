"""Token ids and numbers however a caller holds them: lists, and arrays of NumPy, JAX or torch, none of which is imported for it."""

from collections.abc import Sequence

from gptoss_jax.quoting import quoted


def plain(value):
    """An array of whatever library as lists of Python's numbers, one without dimensions as a number; anything else as it is.

    Raises ValueError for an array that holds no values yet, as under `jax.jit`, or none any more.
    """
    if isinstance(value, list | tuple | str | int | float) or not (hasattr(value, "ndim") and hasattr(value, "tolist")):
        return value
    try:
        return value.tolist()
    except Exception as error:
        if "deleted" in str(error):  # as JAX says of what a program was given to write over
            raise ValueError("token ids and numbers must be known; got a deleted array; pass one that was not given away.") from error
        raise ValueError(f"token ids and numbers must be known; got {quoted(value, 60)}; call this outside of jax.jit.") from error


def is_id(value) -> bool:
    """Whether it is a whole number, as itself or as an array without dimensions."""
    value = plain(value) if getattr(value, "ndim", 1) == 0 else value
    return isinstance(value, int) and not isinstance(value, bool)


def flat(what: str, tokens: Sequence[int]) -> list[int]:
    """Token ids as Python's integers. Their range is the vocabulary's to say, see `engine.requests`.

    Args:
      what: they are, for errors, such as "a prompt".
      tokens: a sequence of integers, or an array with one dimension.

    Raises:
      ValueError: they are not that.
    """
    ids = plain(tokens)
    found = list(ids) if hasattr(ids, "__iter__") else [None]
    if not {*map(type, found)} <= {int}:
        found = [plain(token) for token in found]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in found):
            raise ValueError(f"{what} of token ids must be a flat sequence of integers; got {quoted(tokens, 60)}; pass a list of ints.")
        found = [int(token) for token in found]
    return found
