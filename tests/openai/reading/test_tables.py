"""The tables that bodies are read by: what they promise is what `Sampling` and `Task` take, and the docs show them."""

from pathlib import Path

import pytest

from gptoss_jax.batch import plain
from gptoss_jax.openai import reading
from gptoss_jax.openai.asked import Reading
from gptoss_jax.openai.errors import Refused
from gptoss_jax.openai.reading.fields import NOTHING, Field, Table, Taken, of_words, only
from gptoss_jax.openai.reading.sampling import SAMPLING
from gptoss_jax.sampling.options import REAL, WHOLE, Sampling
from gptoss_jax.turns.doors import FURTHER
from gptoss_jax.turns.task import Task

DOCS = Path(__file__).parents[3] / "docs" / "fields.md"
TABLES = {**reading.TABLES, "plain": plain.TABLE}
every_table = pytest.mark.parametrize("name", TABLES)


@every_table
def test_the_docs_show_the_table(name):
    shown = DOCS.read_text(encoding="utf-8")
    rows = "\n".join(TABLES[name].rows())
    assert f"|---|---|---|\n{rows}\n" in shown, f"docs/fields.md must have these rows:\n{rows}"


@every_table
def test_what_fields_become_is_there(name):
    for becomes in TABLES[name].becoming:
        where, _, field = becomes.partition(".")
        known = {"task": Task.__dataclass_fields__, "sampling": Sampling.__dataclass_fields__, "options": FURTHER}[where]
        assert field in known


@every_table
def test_every_option_of_sampling_can_be_said(name):
    """But for what the protocol has no word for: log-probabilities that are processed, and in Responses those of given ids."""
    unsaid = {"plain": set(), "responses": {"processed_logprobs", "logprob_token_ids"}}.get(name, {"processed_logprobs"})
    said = {become.partition(".")[2] for become in TABLES[name].becoming if become.startswith("sampling.")}
    assert said == {*Sampling.__dataclass_fields__} - unsaid


@pytest.mark.parametrize("name", [*REAL, *WHOLE])
def test_the_ends_of_a_range_are_taken_and_what_lies_beyond_is_not(name):
    low, high, _ = (REAL | WHOLE)[name]
    for end, beyond in ((low, low - 1), (high, high + 1)):
        Sampling(**{name: end})
        with pytest.raises(ValueError, match=f"^{name} must be") as error:
            Sampling(**{name: beyond})
        assert error.value.option == name
    assert name in {field.name for field in SAMPLING} | {"max_tokens", "logprobs", "processed_logprobs"}


def test_names_that_cannot_be_printed_are_quoted():
    taken = Taken(Reading(strict=False))
    taken.fields({"a\nERROR b": 1, "\ud800": 2, "\u00e4 b": 3, "x" * 1000: 4}, Table())
    assert [*taken.ignored] == [r"'a\nERROR b'", r"'\ud800'", "\u00e4 b", "x" * 200]
    assert all(name.isprintable() for name in taken.ignored)


def test_what_is_not_known_is_refused_or_ignored_at_every_depth_and_wishes_with_it():
    inner = Table(Field("a"), Field("mood", only("calm"), hint=of_words("wild")))
    table = Table(Field("outer", inner=inner), Field("never", NOTHING), Field("live", only(True), files=NOTHING))
    taken = Taken(Reading(strict=False, live=True))
    body = {"outer": {"a": None, "b": 1, "mood": "wild"}, "c": 2, "d": None, "live": True}
    assert taken.fields(body, table) == {"outer": {}, "live": True} and [*taken.ignored] == ["outer.b", "outer.mood", "c"]
    for one, says in (
        ({"outer": {"b": 1}}, "outer.b is no field"),
        ({"outer": {"mood": "wild"}}, "outer.mood must be calm; got wild"),
        ({"live": True}, "live must be left out"),
    ):
        with pytest.raises(Refused, match=says):
            Taken(Reading(strict=True)).fields(one, table)
    for one, says in (({"outer": {"mood": 5}}, "outer.mood must be calm; got 5"), ({"never": 1}, "never must be left out; got 1")):
        with pytest.raises(Refused, match=says):
            Taken(Reading(strict=False)).fields(one, table)
