"""A server that speaks OpenAI's protocol. An entry point: reads flags and files, prints.

    python -m gptoss_jax.serve --checkpoint=gpt-oss-20b/ --slots=64 --port=8000

It listens at once, for this machine alone unless --host says otherwise, and says where once the model is there: until then everyone is told
to come again. SIGTERM and Ctrl-C end it: what runs gets --drain_seconds, exit status 0; 1 it cannot start, and says why.
"""

import asyncio
import gc
import importlib.util
import logging as standard_logging
import os
from pathlib import Path
import resource
import shlex
import sys
from typing import TYPE_CHECKING

from absl import app, flags, logging

from gptoss_jax import model_flags
from gptoss_jax.parallel import launch
from gptoss_jax.quoting import quoted
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.serve.settings import NAME_MOST, Settings

if TYPE_CHECKING:
    from gptoss_jax.llm import LLM

_LIBRARIES = ("starlette", "uvicorn", "prometheus_client")
_QUESTION = '{"model": "%s", "messages": [{"role": "user", "content": "What is 27 + 58?"}]}'


def define_flags(to: flags.FlagValues) -> None:
    text, whole = flags.DEFINE_string, flags.DEFINE_integer
    text("served_model_name", None, "What clients call the model; default the checkpoint's last name.", to)
    text("host", "127.0.0.1", "Address to listen on; the default is this machine's own, which no other can reach.", to)
    whole("port", 8000, "Port to listen on; 0 for any that is free.", 0, 65535, flag_values=to)
    text("api_key_file", None, "File of keys, one a line; clients must give one of them.", to)
    flags.DEFINE_bool("public_without_key", False, "Let other machines ask without a key.", to)
    flags.DEFINE_list("adapters", [], "Adapters that clients ask for as models: name=directory of PEFT's files,...", flag_values=to)
    flags.DEFINE_list("cors_origins", [], "Web pages that may ask, such as https://chat.example.org; * for all.", flag_values=to)
    flags.DEFINE_float("timeout", None, "Most seconds of a request, then it ends with what it has; default none.", 0, flag_values=to)
    whole("max_waiting", Settings.max_waiting, "Answers that may wait for a slot; who comes then gets 429.", lower_bound=0, flag_values=to)
    whole("max_body_bytes", Settings.max_body_bytes, "A longer body gets 413.", lower_bound=1000, flag_values=to)
    whole("max_stored_bytes", Settings.max_stored_bytes, "Of responses that are kept; the oldest are forgotten.", 0, flag_values=to)
    flags.DEFINE_bool("strict", False, "Refuse unknown fields and models, which are otherwise logged and ignored.", to)
    flags.DEFINE_float("drain_seconds", 30, "What runs gets to end, after a signal.", lower_bound=0, flag_values=to)
    flags.DEFINE_enum("log_level", "info", ["debug", "info", "warning", "error"], "info has a line for each request.", to)
    model_flags.define_flags(to)
    launch.define_flags(to)


def main(argv: list[str], given: flags.FlagValues = flags.FLAGS) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
    logging.set_verbosity({"debug": logging.DEBUG}.get(given.log_level, given.log_level))
    for noisy in ("jax", "uvicorn", "asyncio"):
        standard_logging.getLogger(noisy).setLevel(standard_logging.WARNING)
    try:
        _serve(given)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:  # before the server listens to signals
        sys.exit(130)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # a model that is still being loaded would be waited for


def _serve(given: flags.FlagValues) -> None:
    """Everything that can be refused is refused before the weights are read."""
    if missing := [name for name in _LIBRARIES if importlib.util.find_spec(name) is None]:
        raise ValueError(f"a server needs {' and '.join(missing)}; pip install 'gptoss-jax[serve]' has them.")
    if given.distributed or given.coordinator_address or given.num_processes is not None or given.process_id is not None:
        raise ValueError("a server is one process; --distributed is for several; serve from one, with --mesh over its own devices.")
    if given.mesh is not None:
        launch.shape(given.mesh)
    settings = _settings(given)
    beside = _adapters(given.adapters, settings.name)
    from gptoss_jax.serve import draining
    from gptoss_jax.serve.connections import listening

    _raise_file_limit()
    at = listening.listen(given.host, given.port)
    public = listening.is_public(at)
    if public and not settings.keys and not given.public_without_key:
        at.close()
        raise ValueError(
            f"whoever reaches {given.host} could use this server; give --api_key_file, --host=127.0.0.1, or say --public_without_key."
        )
    address = listening.address_of(at)
    ready = lambda: _say(_banner(settings.name, address, given.api_key_file if settings.keys else None, public))
    asyncio.run(draining.serve(settings, at, lambda: _llm(given, beside), ready, drain_seconds=given.drain_seconds))


def _settings(given: flags.FlagValues) -> Settings:
    from gptoss_jax.turns.task import LONGEST

    name = given.served_model_name if given.served_model_name is not None else Path(given.checkpoint).name or given.checkpoint
    if not 0 < len(name) <= NAME_MOST or not name.isprintable():
        raise ValueError(f"--served_model_name must be 1 to {NAME_MOST} printable characters; got {quoted(name)}.")
    temperature = model_flags.temperature(given)
    Sampling(temperature=temperature, max_tokens=given.max_tokens)
    for flag, seconds in (("timeout", given.timeout), ("drain_seconds", given.drain_seconds)):
        if seconds is not None and not 0 <= seconds <= LONGEST:
            raise ValueError(f"--{flag} must be a number of seconds, 0 to {LONGEST:,}; got {quoted(seconds)}.")
    return Settings(
        name,
        keys=() if given.api_key_file is None else _keys(given.api_key_file),
        strict=given.strict,
        timeout=given.timeout,
        temperature=temperature,
        max_tokens=given.max_tokens,
        reasoning_effort=given.reasoning_effort,
        max_waiting=given.max_waiting,
        max_body_bytes=given.max_body_bytes,
        max_stored_bytes=given.max_stored_bytes,
        cors_origins=tuple(given.cors_origins),
    )


def _keys(path: str) -> tuple[str, ...]:
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeError) as error:
        raise ValueError(f"--api_key_file must name a file of keys, one a line; reading {path} failed: {error}.") from None
    keys = tuple(filter(None, map(str.strip, lines)))
    if not keys or not all(key.isascii() and key.isprintable() and " " not in key for key in keys):
        raise ValueError(f"--api_key_file must hold keys of ASCII without spaces, one a line, at least one; {path} does not.")
    return keys


def _adapters(given: list[str], served: str) -> dict[str, str]:
    """Directories by name."""
    found: dict[str, str] = {}
    for one in given:
        name, _, directory = (part.strip() for part in one.partition("="))
        if not 0 < len(name) <= NAME_MOST or not name.isprintable() or not directory or name in (served, *found):
            raise ValueError(f"--adapters must be name=directory,... with each name once, and not the model's; got {quoted(one)}.")
        found[name] = directory
    return found


def _llm(given: flags.FlagValues, beside: dict[str, str]) -> "LLM":
    gc.disable()  # until all is ready: what is made until then stays
    try:
        from gptoss_jax import adapters, compile_cache
        from gptoss_jax.llm import LLM
        from gptoss_jax.weights.loading import load

        compile_cache.enable(given.compilation_cache)
        shown = _on_terminal()
        model = load(given.checkpoint, mesh=launch.start(given), **model_flags.of_load(given), progress=shown)
        loaded = {name: adapters.load(directory, model.config) for name, directory in beside.items()}
        llm = LLM(model, **model_flags.of_llm(given), **adapters.room_for(loaded.values()))
        for name, one in loaded.items():
            llm.attach(name, one)
        _ = llm.tokenizer  # raises where there is none
        llm.prepare(progress=shown)
        gc.freeze()
        return llm
    finally:
        gc.enable()


def _banner(name: str, address: str, key_file: str | None, public: bool) -> str:
    """Where it is, and a command that asks it something."""
    key = "" if key_file is None else f' -H "Authorization: Bearer $(grep -m1 . {shlex.quote(key_file)})"'
    question = shlex.quote(_QUESTION % name.replace("\\", "\\\\").replace('"', '\\"'))
    who = "other machines too" if public else "this machine only"
    ask = f"curl -s {address}/v1/chat/completions{key} -H 'Content-Type: application/json' -d {question}"
    return f"{name} is served at {address}/v1 ({who}); try: {ask}"


def _raise_file_limit() -> None:
    """As many connections as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (ValueError, OSError) as error:
            logging.info("at most %d connections: %s", soft, error)


def _say(text: str) -> None:
    try:
        print(text, flush=True)
    except (OSError, ValueError) as error:
        logging.warning("%s (standard output cannot be written: %s)", text, error)


def _on_terminal() -> bool:
    try:
        return sys.stderr.isatty()
    except (AttributeError, OSError, ValueError):
        return False


if __name__ == "__main__":
    define_flags(flags.FLAGS)
    for shared in (model_flags, launch):  # for --help, which shows a program's own flags alone
        flags.adopt_module_key_flags(shared)
    app.run(main)
