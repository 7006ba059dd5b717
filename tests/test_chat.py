"""The terminal chat, run in this process on the bundled checkpoint: what is printed, what is remembered, what is refused."""

import io
import json
from pathlib import Path
import sys
import types

from absl import flags
from absl.testing import flagsaver
import jax
import platformdirs
import pytest
from rich.console import Console
from rich.text import Text

from gptoss_jax import chat, compile_cache
from gptoss_jax.llm import LLM
from gptoss_jax.sampling.options import Sampling
from gptoss_jax.turns.reply import ReplyPiece

if not flags.FLAGS.is_parsed():
    flags.FLAGS(["chat"])

WEATHER = {
    "name": "get_weather",
    "description": "Gets the weather in a city.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}


@pytest.fixture
def talk(monkeypatch, capsys):
    """Runs the program on some arguments and typed lines; returns what it printed."""

    def run(*arguments: str, typed: str = "", **values) -> str:
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        with flagsaver.flagsaver(compilation_cache="off", **values):
            chat.main(["chat", *arguments])
        return capsys.readouterr().out

    return run


def test_one_question_prints_the_reasoning_then_the_answer(talk):
    shown = talk("What is 27 + 58?").strip().splitlines()
    assert "85" in shown[-1]
    assert len(shown) == 2


def test_reasoning_can_be_left_out(talk):
    assert len(talk("What is 27 + 58?", show_reasoning=False).strip().splitlines()) == 1


def test_a_conversation_remembers_forgets_and_ends(talk):
    typed = "What is 20 + 15?\n/effort low\nNow add 4.\n/new\n/help\n/quit\nnever read\n"
    shown = talk(typed=typed)
    assert "35" in shown and "39" in shown
    assert "/effort" in shown and "never read" not in shown


def test_the_end_of_the_input_ends_the_program(talk):
    assert "Model(" in talk(typed="")


def test_a_tool_call_is_shown_and_its_result_goes_back(talk, tmp_path):
    path = tmp_path / "tools.json"
    path.write_text(json.dumps([WEATHER]))
    shown = talk(typed="What is the weather in Paris?\nsunny, 21\n/quit\n", tools=str(path))
    assert "call functions.get_weather" in shown and '"Paris"' in shown
    assert "sunny" in shown.split("result of get_weather>")[1]


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "JSON"), ("{}", "list"), ('[{"name": "f", "parameters": {"type": "nonsense"}}]', "schema"), (None, "no such|No such")],
)
def test_bad_tools_are_one_sentence(talk, tmp_path, text, words):
    path = tmp_path / "tools.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(SystemExit, match=words) as caught:
        talk("Hello", tools=str(path))
    assert str(caught.value).startswith("error: ") and "\n" not in str(caught.value)


def test_a_missing_checkpoint_is_one_sentence(talk):
    with pytest.raises(SystemExit, match="error: there is no checkpoint directory"):
        talk("Hello", checkpoint="/nowhere/at/all")


def test_two_questions_are_refused(talk):
    with pytest.raises(Exception, match="in quotes"):
        talk("What", "is 2 + 2?")


@pytest.mark.thorough
def test_an_error_in_a_conversation_does_not_end_it(talk):
    shown = talk(typed="Hello " * 100 + "\nWhat is 1 + 2?\n/quit\n", context=128)
    assert "error: prompt has" in shown and "1 + 2 = 3" in shown


class Interrupted:
    """A stream that Ctrl-C stops after its first piece."""

    def __init__(self, stream):
        self.stream, self.reply = stream, None

    def __iter__(self):
        yield next(self.stream)
        self.reply = self.stream.reply
        raise KeyboardInterrupt


def test_ctrl_c_ends_the_answer_and_keeps_what_came(monkeypatch, capsys):
    llm = LLM("nano", slots=1, context=512)
    stream = llm.stream
    monkeypatch.setattr(llm, "stream", lambda *args, **kwargs: Interrupted(stream(*args, **kwargs)))
    conversation = chat.Conversation(llm, Console(highlight=False), None, Sampling(temperature=0))
    conversation.say({"role": "user", "content": "What is 27 + 58?"})
    assert "[stopped]" in capsys.readouterr().out
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]
    monkeypatch.setattr(llm, "stream", stream)
    assert "85" in conversation.say({"role": "user", "content": "What is 27 + 58?"}).text  # the history renders


def test_pieces_of_a_stream_are_reply_pieces():
    llm = LLM("nano", slots=1, context=512)
    pieces = list(llm.stream("What is 27 + 58?", Sampling(temperature=0)))
    assert all(isinstance(piece, ReplyPiece) and (piece.text or piece.begins or piece.ends) for piece in pieces)


def test_the_compilation_cache_goes_where_it_is_told(tmp_path, monkeypatch):
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache")}
    try:
        assert compile_cache.enable(str(tmp_path / "here")) == tmp_path / "here"
        assert (tmp_path / "here").is_dir() and jax.config.jax_compilation_cache_dir == str(tmp_path / "here")
        jax.config.update("jax_compilation_cache_dir", None)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert compile_cache.enable() == tmp_path / "cache" / "gptoss-jax" / "compiled"
        assert compile_cache.enable("off") is None
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("named", ["file", "link", ""])
def test_a_cache_that_cannot_be_a_folder_is_refused_in_a_sentence(named, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere" / "at all")
    with pytest.raises(ValueError, match="the compilation cache must be a folder"):
        compile_cache.enable(str(tmp_path / named) if named else "")


def test_a_home_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch, caplog):
    (tmp_path / "home").write_text("")  # no folder can be made in it
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache")}
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert compile_cache.enable() is None and "No compiled programs are kept" in caplog.text
        assert compile_cache.enable("gs://bucket/folder") is None and jax.config.jax_compilation_cache_dir == "gs://bucket/folder"
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("home", ["~/.cache/gptoss-jax", "no/where"])
def test_nobodys_home_stops_nothing(home, tmp_path, monkeypatch, caplog):
    """Of a user of whom the system knows no home `platformdirs` gives a path that begins nowhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda *_: Path(home))
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_enable_compilation_cache")}
    try:
        jax.config.update("jax_compilation_cache_dir", None)
        assert compile_cache.enable() is None and "there is no home folder" in caplog.text and not list(tmp_path.iterdir())
        with pytest.raises(ValueError, match="the compilation cache must be a folder"):
            compile_cache.enable("a\0b")
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@pytest.mark.parametrize("width", ["0", "1", "99999999", "x", "-1"])
def test_a_terminal_of_any_width_shows_the_answer(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", width)
    monkeypatch.setenv("TERM", "nonsense")
    chat._console(quiet=False).print(Text("8 + 5 = 13"), soft_wrap=True)
    assert "8 + 5 = 13" in capsys.readouterr().out


def test_a_terminal_without_a_sign_for_a_letter_shows_a_question_mark(monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii", write_through=True))
    chat._console(quiet=False).print(Text("caf\u00e9"))
    assert raw.getvalue() == b"caf?\n"


def test_an_answer_that_cannot_be_written_is_one_sentence(monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(chat, "_start", lambda *_: types.SimpleNamespace(say=fail))
    with flagsaver.flagsaver(compilation_cache="off"), pytest.raises(SystemExit, match="error: .*No space left on device"):
        chat.main(["chat", "What is 8 + 5?"])
