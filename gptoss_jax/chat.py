"""Terminal chat with a gpt-oss checkpoint. An entry point: reads flags, prints.

    python -m gptoss_jax.chat "What is 27 + 58?"        one question, one answer
    python -m gptoss_jax.chat                           a conversation; /help lists its commands

On several devices with --mesh, and in several processes (`gptoss_jax.parallel.launch`), of which the first one prints.
"""

from collections.abc import Mapping
import datetime
import gc
import io
import sys
from typing import TYPE_CHECKING

from absl import app, flags, logging
from rich.console import Console
from rich.text import Text

from gptoss_jax import model_flags, strict_json
from gptoss_jax.parallel import launch
from gptoss_jax.sampling.options import Sampling

if TYPE_CHECKING:  # jax and what needs it are imported once the flags are read
    import jax

    from gptoss_jax.llm import LLM
    from gptoss_jax.turns.reply import Reply, Stream

_CHECKPOINT = flags.DEFINE_string("checkpoint", "nano", "Checkpoint directory, hub repository, or 'nano', the bundled one.")
_EFFORT = flags.DEFINE_enum("reasoning_effort", "medium", ["low", "medium", "high"], "How much the model reasons before it answers.")
_TOOLS = flags.DEFINE_string("tools", None, "JSON file with a list of function definitions that the model may call, in OpenAI's form.")
_INSTRUCTIONS = flags.DEFINE_string("instructions", None, "Developer instructions (a 'system prompt').")
_CONTEXT = flags.DEFINE_integer("context", None, "Most tokens of the conversation; default 8,192 or the model's own limit.", lower_bound=2)
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", None, "Most tokens of an answer; the default is what the context leaves.", lower_bound=1)
_TEMPERATURE = flags.DEFINE_float("temperature", None, "0 takes the most probable token; the default is 1, or 0 for nano.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Draw among the most probable tokens that reach this probability.")
_SEED = flags.DEFINE_integer("seed", None, "Seed of the draws; the default is a fresh one for every answer.")
_DTYPE = flags.DEFINE_enum("dtype", "bfloat16", ["bfloat16", "float32"], "Of everything but packed experts.")
_FORMS = ["auto", "packed", "tiled", "stacked", "split"]
_EXPERTS = flags.DEFINE_enum("experts", "auto", _FORMS, "How expert weights are held; see gptoss_jax.load.")
_KERNELS = flags.DEFINE_enum("kernels", "auto", ["auto", "on", "off"], "Which kernels run on a Hopper GPU; see gptoss_jax.load.")
_SHOW_REASONING = flags.DEFINE_bool("show_reasoning", True, "Print the reasoning, dimmed.")
_COMPILATION_CACHE = flags.DEFINE_string(
    "compilation_cache", "default", "Folder that keeps compiled programs; 'default' is in the user's cache folder, 'off' keeps none."
)
launch.define_flags()
flags.adopt_module_key_flags(launch)  # for --help, which shows a program's own flags alone

_NARROWEST, _WIDEST = 10, 10_000  # columns that a terminal may have

_HELP = """/new      forget the conversation
/effort   low, medium or high: how much the model reasons from now on
/help     this list
/quit     leave (so does Ctrl-D)
Ctrl-C ends an answer, not the program. A tool call is shown; type its result (empty: a line break), and the model goes on."""


class Conversation:
    """What has been said, and how to go on.

    Args:
      llm: who answers.
      console: where the answer is shown.
      tools: function definitions, or None.
    """

    def __init__(self, llm: "LLM", console: Console, tools: list[Mapping] | None, sampling: Sampling):
        self.llm, self.console, self.tools, self.sampling = llm, console, tools, sampling
        self.effort = _EFFORT.value
        self.messages: list[Mapping] = []

    def say(self, message: Mapping) -> "Reply":
        """Adds a message and streams the answer, which is added too. Ctrl-C keeps what came until then."""
        asked = [*self.messages, message]
        stream = self.llm.stream(
            asked,
            self.sampling,
            reasoning_effort=self.effort,
            tools=self.tools,
            instructions=_INSTRUCTIONS.value,
            current_date=datetime.date.today(),
        )
        stopped = False
        try:
            self._show(stream)
        except KeyboardInterrupt:
            stopped = True
            self.console.print(Text("\n[stopped]", style="yellow"))
        reply = stream.reply
        if reply.finish_reason == "length" and not stopped:
            self.console.print(Text("[cut off: --max_tokens or --context is reached]", style="yellow"))
        if reply.error:
            self.console.print(Text(f"[ended by a fault: {reply.error}]", style="yellow"))
        if reply.malformed:
            self.console.print(Text(f"[the model broke its format: {'; '.join(reply.parsed.problems)}]", style="yellow"))
        self.messages = asked + reply.messages
        return reply

    def _show(self, stream: "Stream") -> None:
        shown = None
        for piece in stream:
            if piece.channel == "analysis" and not _SHOW_REASONING.value:
                continue
            if piece.message != shown:
                if shown is not None:
                    self.console.print()
                if piece.recipient:
                    self.console.print(Text(f"call {piece.recipient} ", style="cyan"), end="")
                shown = piece.message
            style = "dim" if piece.channel == "analysis" else "cyan" if piece.recipient else ""
            self.console.print(Text(piece.text, style=style), end="", soft_wrap=True)
        if shown is not None:
            self.console.print()


def main(argv: list[str]) -> None:
    if len(argv) > 2:
        raise app.UsageError('the question must be one argument; put it in quotes: "What is 27 + 58?"')
    if not flags.FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # JAX tells at INFO which accelerators it did not find
    gc.disable()  # until all is ready: what is made until then stays, and looking through it takes a quarter of the time
    from gptoss_jax import compile_cache
    from gptoss_jax.parallel import processes

    try:
        compile_cache.enable(_COMPILATION_CACHE.value)
        mesh = launch.start()
        if len(argv) < 2 and processes.count() > 1:
            raise ValueError("several processes cannot share a keyboard; give the question on the command line.")
        console = _console(quiet=not processes.is_first())
        conversation = _start(console, mesh)
        if len(argv) == 2:
            conversation.say({"role": "user", "content": argv[1]})
            return
    except (ValueError, OSError) as error:  # also where standard output cannot be written
        sys.exit(f"error: {error}")
    finally:
        gc.enable()
    try:
        _talk(conversation)
    except OSError as error:
        sys.exit(f"error: {error}")


def _talk(conversation: Conversation) -> None:
    """Reads lines until the input ends, or /quit."""
    console = conversation.console
    console.print(Text(f"{conversation.llm.model!r}\n/help lists the commands.", style="dim"))
    while (line := _read(console, "> ")) is not None:
        if not line.strip():
            continue
        try:
            if line.startswith("/"):
                if not _command(line.split(), conversation):
                    return
            else:
                _turn(line, conversation)
        except ValueError as error:
            console.print(Text(f"error: {error}", style="red"))


def _console(quiet: bool) -> Console:
    """The terminal, whatever it can show: of a width that is none it has 80 columns, and a letter that it has no sign for is "?"."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    console = Console(highlight=False, quiet=quiet)
    return console if _NARROWEST <= console.width <= _WIDEST else Console(highlight=False, quiet=quiet, width=80)


def _start(console: Console, mesh: "jax.sharding.Mesh | None") -> Conversation:
    """The conversation that the flags ask for; everything that can be refused is refused before the weights are read."""
    from gptoss_jax import harmony
    from gptoss_jax.llm import LLM
    from gptoss_jax.weights.loading import load

    temperature = model_flags.temperature_of(_TEMPERATURE.value, _CHECKPOINT.value)
    sampling = Sampling(temperature=temperature, top_p=_TOP_P.value, seed=_SEED.value, max_tokens=_MAX_TOKENS.value)
    tools = _read_tools(_TOOLS.value) if _TOOLS.value else None
    harmony.to_conversation([{"role": "user", "content": ""}], tools=tools, instructions=_INSTRUCTIONS.value)  # refuses bad tools
    options = {"dtype": _DTYPE.value, "experts": _EXPERTS.value, "kernels": _KERNELS.value}
    model = load(_CHECKPOINT.value, mesh=mesh, **options, progress=console.is_terminal)
    slots = 1 if model.params.partition is None else model.params.partition.parts("batch")
    llm = LLM(model, slots=slots, context=_CONTEXT.value)
    llm.prepare(progress=console.is_terminal)
    gc.freeze()
    gc.enable()
    return Conversation(llm, console, tools, sampling)


def _turn(line: str, conversation: Conversation) -> None:
    """A user's message and the answer, with the results of the tools that the model calls on the way."""
    message = {"role": "user", "content": line}
    while True:
        reply = conversation.say(message)
        if not reply.tool_calls or reply.finish_reason != "tool_calls":
            return
        result = _read(conversation.console, f"result of {reply.tool_calls[-1].name}> ")
        if result is None:
            return
        message = {"role": "tool", "name": reply.tool_calls[-1].name, "content": result}


def _command(words: list[str], conversation: Conversation) -> bool:
    """Obeys a command; False for the one that leaves."""
    match words:
        case ["/quit" | "/exit"]:
            return False
        case ["/new"]:
            conversation.messages = []
        case ["/effort", ("low" | "medium" | "high") as effort]:
            conversation.effort = effort
        case _:
            conversation.console.print(Text(_HELP, style="dim"))
    return True


def _read(console: Console, prompt: str) -> str | None:
    """A line from the user; "" after Ctrl-C, None at the end of the input."""
    try:
        return console.input(Text(prompt, style="bold"))
    except KeyboardInterrupt:
        console.print()
        return ""
    except EOFError:
        return None


def _read_tools(path: str) -> list[Mapping]:
    try:
        with open(path, encoding="utf-8") as file:
            tools = strict_json.loads(file.read())
    except (OSError, ValueError) as error:
        raise ValueError(f"--tools must name a JSON file with a list of function definitions; reading {path} failed: {error}") from None
    if not isinstance(tools, list):
        raise ValueError(f"--tools must hold a JSON list of function definitions; {path} holds a {type(tools).__name__}.")
    return tools


def run() -> None:
    """Reads the flags and calls `main`."""
    app.run(main)


if __name__ == "__main__":
    run()
