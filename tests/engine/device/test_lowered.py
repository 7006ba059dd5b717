"""Programs kept as they were lowered: a second start traces nothing and gives the same bits, and nothing bad on the disk is ever run."""

import functools
import os
from pathlib import Path
import re
import stat

import jax
import jax.numpy as jnp
from mixed_requests import CONTEXT, MIXED, PAGE, SLOTS, everything, fresh, make
from on_meshes import answers, model
import pytest
from small_model import small_model

from gptoss_jax.engine.device import decode, lowered, shared
from gptoss_jax.engine.engine import Engine
from pallas_kernels import hopper


@pytest.fixture(autouse=True)
def kept(tmp_path, monkeypatch, keep_lowered) -> Path:
    """The folder of a user's cache, which nobody has made yet."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "cache"))
    monkeypatch.setattr(shared, "_COMPILED", {})
    yield tmp_path / "cache" / "lowered"
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture
def another_start(monkeypatch):
    """What a new process would not know: every compiled and traced program."""

    def start():
        monkeypatch.setattr(shared, "_COMPILED", {})
        jax.clear_caches()

    return start


@pytest.fixture
def traced(monkeypatch) -> list[str]:
    """The model's passes that are traced from now on."""
    seen = []
    for name in ("extend", "decode_step", "sample"):
        own = getattr(decode, name)
        monkeypatch.setattr(decode, name, lambda *a, own=own, name=name, **k: (seen.append(name), own(*a, **k))[1])
    return seen


def run(**options):
    return everything(make(**options), fresh(MIXED[:5]))


def test_a_second_start_traces_nothing_and_gives_the_same_bits(kept, another_start, traced, caplog):
    first = run()
    assert set(traced) == {"extend", "decode_step", "sample"} and len(list(kept.iterdir())) == 3
    assert stat.S_IMODE(kept.stat().st_mode) == 0o700 and all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in kept.iterdir())
    traced.clear()
    another_start()
    assert run() == first and not traced
    jax.config.update("jax_enable_compilation_cache", False)  # nothing is kept: the plain way
    another_start()
    assert run() == first and traced
    jax.config.update("jax_enable_compilation_cache", True)
    assert not caplog.records


@pytest.mark.slow
def test_what_was_lowered_for_one_device_runs_on_another_of_its_kind(another_start, traced, caplog):
    first, model = run(), small_model()
    traced.clear()
    another_start()
    there = jax.device_put(model.params, jax.devices()[3])
    engine = Engine(there, model.config, eos_token_ids=(319,), slots=SLOTS, context=CONTEXT, chunk=32, page=PAGE)
    assert everything(engine, fresh(MIXED[:5])) == first and not traced and not caplog.records
    assert engine.programs._state.token.devices() == {jax.devices()[3]}


@pytest.mark.thorough
def test_on_a_mesh(another_start, traced):
    first = answers(model("tiny", shape=(2, 4)))
    assert traced
    traced.clear()
    another_start()
    assert answers(model("tiny", shape=(2, 4))) == first and not traced


@pytest.mark.parametrize("what", ["name", "folder is gone", "disk is full", "serialize"])
def test_what_fails_around_a_program_costs_its_keeping_only(what, kept, tmp_path, monkeypatch, caplog):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    if what == "name":
        monkeypatch.setattr(lowered, "_source", fail)
    elif what == "disk is full":
        monkeypatch.setattr(lowered.tempfile, "NamedTemporaryFile", fail)
    elif what == "serialize":
        monkeypatch.setattr(lowered.export.Exported, "serialize", fail)
    else:
        monkeypatch.setattr(lowered, "_folder", lambda: tmp_path / "gone")
    lowered._once.cache_clear()
    function = jax.jit(lambda x, y: (x + y,), donate_argnums=0)
    for _ in range(2):
        x = jnp.ones(3)
        program = lowered.lower(function, (x, jnp.ones(3)), {}, donated=x, result=(0,))()
        assert program(x, jnp.ones(3))[0].tolist() == [2, 2, 2]
    assert len(caplog.records) == 1 and "cannot be kept in" in caplog.text
    assert not kept.exists() or not list(kept.iterdir())


@pytest.mark.quick("flipped")
@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "nonsense", "another program"])
def test_what_is_damaged_is_traced_and_written_anew(damage, kept, another_start, traced, caplog):
    first = run()
    whole = {path: path.read_bytes() for path in kept.iterdir()}
    longest = max(whole, key=lambda path: len(whole[path]))
    for path, data in whole.items():
        middle = len(data) // 2
        path.write_bytes(
            {
                "cut": data[:middle],
                "flipped": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
                "empty": b"",
                "nonsense": lowered._MAGIC + lowered._digest(path, b"nonsense") + b"nonsense",
                "another program": whole[longest],  # the longest one itself is as it was
            }[damage]
        )
    traced.clear()
    another_start()
    assert run() == first and traced
    assert re.search("it is traced again", caplog.text)
    traced.clear()
    another_start()
    assert run() == first and not traced


@pytest.mark.quick("open to others")
@pytest.mark.parametrize("how", ["open to others", "a link", "a file", "not writable"])
def test_a_folder_that_is_not_ones_own_is_not_used(how, kept, another_start, traced, caplog, tmp_path, monkeypatch):
    run()
    another_start()
    if how == "open to others":
        kept.chmod(0o755)
    elif how == "not writable":
        monkeypatch.setattr(lowered.os, "geteuid", lambda: os.getuid() + 1)
    else:
        kept.rename(tmp_path / "elsewhere")
        if how == "a link":
            kept.symlink_to(tmp_path / "elsewhere")
        else:
            kept.write_text("")
    traced.clear()
    make().prepare()
    assert traced and re.search("are not run|cannot be kept", caplog.text)


@pytest.mark.thorough
def test_the_folder_is_bounded_and_the_oldest_go(kept, another_start, monkeypatch):
    make().prepare()
    sizes = {path: path.stat().st_size for path in kept.iterdir()}
    for path in sizes:
        os.utime(path, (1, 1))
    monkeypatch.setattr(lowered, "LIMIT", sum(sizes.values()) + 1)
    another_start()
    make(slots=2).prepare()
    left = set(kept.iterdir())
    assert sum(path.stat().st_size for path in left) <= lowered.LIMIT and len(left - sizes.keys()) >= 2 and not left > sizes.keys()


def test_a_host_that_keeps_nothing_is_as_before(another_start, traced, kept):
    jax.config.update("jax_compilation_cache_dir", None)
    another_start()
    run()
    assert traced and not kept.exists()
    assert lowered._folder() is None


def test_programs_for_a_device_that_is_only_named_are_traced_and_not_kept(kept):
    add, x = jax.jit(lambda x: x + 1), jnp.zeros(2)
    lower = functools.partial(lowered.lower, add, (x,), {}, donated=(), result=0)
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=hopper.H200)):
        lower()
    assert not kept.exists()
    assert lower()()(x).tolist() == [1, 1] and len(list(kept.iterdir())) == 1


def test_a_program_under_another_ones_name_is_not_run(kept, another_start, caplog):
    first = run()
    one, other = sorted(kept.iterdir())[:2]
    one.write_bytes(other.read_bytes())
    another_start()
    assert run() == first and "it is damaged, or another's" in caplog.text


def test_a_folder_for_reading_only_is_read(kept, another_start, traced, monkeypatch, caplog):
    first = run()
    monkeypatch.setattr(lowered.os, "utime", lambda path: (_ for _ in ()).throw(OSError(30, "Read-only file system")))
    monkeypatch.setattr(lowered, "_write", lambda *args: pytest.fail("nothing had to be written"))
    traced.clear()
    another_start()
    assert run() == first and not traced and not caplog.records


@pytest.mark.thorough
def test_what_else_lies_in_the_folder_does_not_stop_the_bound(kept, another_start, monkeypatch, caplog):
    make().prepare()
    (kept / "link").symlink_to(kept / "nowhere")
    (kept / "folder").mkdir()
    monkeypatch.setattr(lowered, "LIMIT", 1)
    another_start()
    make(slots=2).prepare()
    assert len([path for path in kept.iterdir() if path.is_file()]) == 1 and not caplog.records
