"""Waiting that Ctrl-C ends: what is waited for is told to stop, so that nothing goes on behind an answer that nobody wants."""

from collections.abc import Callable
import concurrent.futures
import threading

_LOOK = 0.2  # seconds: a signal that comes just before the wait for a lock begins does not end that wait


def for_result(future: concurrent.futures.Future, stop: threading.Event):
    """A future's result. Where that fails, or is not waited for any longer, `stop` is set."""
    try:
        while not future.done():
            concurrent.futures.wait([future], timeout=_LOOK)
        return future.result()
    except BaseException:
        stop.set()
        raise


def for_call(work: Callable, stop: threading.Event):
    """What `work` gives, done in a thread of its own: one that waits inside XLA would not see Ctrl-C. It has ended when this returns.

    Args:
      work: of no arguments.
      stop: set where it fails, or is not waited for any longer; `work` should end then.
    """
    future: concurrent.futures.Future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
        return for_result(future, stop)
    except BaseException:
        stop.set()
        raise
    finally:
        if thread.ident is not None:
            thread.join()
