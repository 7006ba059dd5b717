"""What the command refuses before anything is loaded, and the line that it prints."""

import shlex
import socket

from absl import flags
import pytest

from gptoss_jax.serve import __main__ as program


def given(*arguments: str) -> flags.FlagValues:
    values = flags.FlagValues()
    program.define_flags(values)
    values(["serve", *arguments])
    return values


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--host=0.0.0.0", "--port=0"], "--public_without_key"),
        (["--api_key_file=/nowhere/keys"], "--api_key_file must name a file"),
        (["--mesh=3"], "--mesh must be"),
        (["--distributed"], "a server is one process"),
        (["--served_model_name="], "--served_model_name must be"),
        (["--served_model_name=a\nb"], "--served_model_name must be"),
        (["--temperature=-1"], "temperature"),
        (["--timeout=nan"], "--timeout must be a number of seconds"),
        (["--timeout=1e10"], "--timeout must be a number of seconds"),
        (["--drain_seconds=inf"], "--drain_seconds must be a number of seconds"),
        (["--host=no.such.host.invalid"], "--host must be"),
    ],
)
def test_what_cannot_work_is_one_sentence(arguments, said):
    with pytest.raises(SystemExit) as ended:
        program.main(["serve"], given(*arguments))
    assert str(ended.value).startswith("error: ") and said in str(ended.value)


def test_a_port_that_is_taken_is_said_so():
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(SystemExit, match="give another --port"):
        program.main(["serve"], given(f"--port={taken.getsockname()[1]}"))


@pytest.mark.parametrize(
    "text, keys", [("one\n\n two \r\nthree", ("one", "two", "three")), ("", None), ("\n \n", None), ("a b", None), ("ü", None)]
)
def test_keys_are_lines(tmp_path, text, keys):
    (tmp_path / "keys").write_text(text, encoding="utf-8")
    if keys is None:
        with pytest.raises(ValueError, match="--api_key_file must hold keys"):
            program._keys(str(tmp_path / "keys"))
    else:
        assert program._keys(str(tmp_path / "keys")) == keys


def test_the_line_is_a_command_whatever_the_names_are():
    line = program._banner('it\'s "so"', "http://127.0.0.1:1", "my keys", public=False)
    words = shlex.split(line.partition("try: ")[2])
    assert words[0] == "curl" and words[-1].startswith('{"model": "it\'s \\"so\\""') and "this machine only" in line


def test_libraries_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None if name == "uvicorn" else object())
    with pytest.raises(SystemExit, match=r"a server needs uvicorn; pip install 'gptoss-jax\[serve\]'"):
        program.main(["serve"], given())
