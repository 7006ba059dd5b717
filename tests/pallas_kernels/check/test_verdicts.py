"""Verdicts in the user's cache: whole or not there, believed only where they are this user's and of this machine."""

import os
from pathlib import Path
import subprocess
import sys
import threading
import time

import pytest

from pallas_kernels import check
from pallas_kernels.check import CHECKS, KERNELS, Outcome, selection, verdicts, watching

FOLDER = verdicts.folder  # which tests put elsewhere

PASSED = {"verdict": "passed", "why": "", "cases": {"c": {"error": 1e-3, "worst": 1e-2}}}
HUNG = {"verdict": "hung", "why": "it was not done in 'c' after 20 s", "cases": {}}


@pytest.fixture
def key(tmp_path, monkeypatch):
    monkeypatch.setattr(verdicts, "folder", lambda: tmp_path / "kernels")
    return verdicts.Key("NVIDIA H200", "580.65.06, cuda 13000", "0.12.0.1", "0.12.0.1", "abc")


def outcomes(kernels, **bad):
    return [Outcome(k, bad.get(k, "passed"), "told so" if k in bad else "", PASSED["cases"]) for k in kernels]


def checks(**bad):
    """A check that finds this, and notes what it was asked."""

    def run(kernels, preset, **options):
        run.asked.append((list(kernels), preset))
        run.without = options["without"]
        for outcome in (found := outcomes(kernels, **bad)):
            options["told"](outcome)
        return found

    run.asked = []
    return run


def test_what_is_written_is_read(key):
    assert verdicts.read(key) == {}
    assert verdicts.add(key, {"route (20b)": PASSED}) == key.path and key.path.stat().st_mode & 0o777 == 0o600
    verdicts.add(key, {"unembed": HUNG})
    assert verdicts.read(key) == {"route (20b)": PASSED, "unembed": HUNG}
    assert [path.name for path in key.path.parent.iterdir()] == [key.path.name], "nothing is left of writing"


@pytest.mark.parametrize("part", ["device", "driver", "jax", "jaxlib", "kernels"])
def test_another_machine_has_another_verdict(key, part):
    verdicts.add(key, {"unembed": PASSED})
    other = verdicts.Key(**{**vars(key), part: "other"})
    assert other.path != key.path and verdicts.read(other) == {}


DAMAGE = {
    "cut": lambda text: text[:-40],
    "empty": lambda text: "",
    "garbage": lambda text: "\x00" * 100,
    "a list": lambda text: "[]",
    "deep": lambda text: "[" * 100_000,
    "another's": lambda text: text.replace("H200", "H100"),
    "of another format": lambda text: text.replace('"format": 1', '"format": 2'),
    "no verdict": lambda text: text.replace('"passed"', '"excellent"'),
    "no number": lambda text: text.replace("0.001", '"0"'),
    "unchecked": lambda text: text.replace('"passed"', '"unchecked"'),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_ignored_with_a_sentence(key, damage, caplog):
    verdicts.add(key, {"unembed": PASSED})
    key.path.write_text(DAMAGE[damage](key.path.read_text()))
    assert verdicts.read(key) == {}
    assert verdicts.read(key) == {}
    (record,) = caplog.records
    assert record.getMessage().startswith(f"The verdict on kernels in {key.path} is ignored: "), "once"
    verdicts.add(key, {"unembed": PASSED})
    caplog.clear()
    assert verdicts.read(key) == {"unembed": PASSED} and not caplog.records


def test_files_of_others_are_ignored(key, caplog, monkeypatch):
    verdicts.add(key, {"unembed": PASSED})
    key.path.chmod(0o666)
    assert verdicts.read(key) == {} and "nobody else can write" in caplog.text
    key.path.chmod(0o600)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    assert verdicts.read(key) == {}
    monkeypatch.undo()


def test_a_pipe_in_its_place_is_no_hang(key, caplog):
    key.path.parent.mkdir(parents=True)
    os.mkfifo(key.path)
    assert verdicts.read(key) == {} and caplog.records


def test_a_folder_in_its_place_costs_no_descriptor(key, caplog):
    key.path.mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    assert all(verdicts.read(key) == {} for _ in range(5)) and len(os.listdir("/proc/self/fd")) == before
    assert len(caplog.records) == 1 and verdicts.add(key, {"unembed": PASSED}) is None


def test_where_nothing_can_be_kept_a_sentence_says_so(key, caplog):
    key.path.parent.parent.mkdir(parents=True, exist_ok=True)
    key.path.parent.write_text("a file")
    assert verdicts.add(key, {"unembed": PASSED}) is None and "cannot be kept" in caplog.text
    with verdicts.alone(key, 1):
        pass


def test_without_a_home_nothing_is_kept_and_nothing_stopped(key, caplog, tmp_path, monkeypatch):
    """Of a user of whom the system knows no home `platformdirs` gives a path that begins nowhere."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(verdicts.platformdirs, "user_cache_path", lambda *_: Path("~/.cache/gptoss-jax"))
    monkeypatch.setattr(verdicts, "folder", FOLDER)
    assert verdicts.read(key) == {} and verdicts.add(key, {}) is None and "cannot be kept" in caplog.text
    with verdicts.alone(key, 1):
        assert not list(tmp_path.iterdir())


def test_the_digest_is_of_the_kernels(monkeypatch):
    assert verdicts.sources() == verdicts.sources() and len(verdicts.sources()) == 64
    assert verdicts.key("NVIDIA H200", "cuda\n 13000").driver.endswith(", cuda 13000")


@pytest.mark.thorough
def test_processes_that_ask_at_once_write_whole_files(key, tmp_path):
    code = (
        "import sys; from pathlib import Path; from pallas_kernels.check import verdicts; verdicts.folder = lambda: Path(sys.argv[1]);"
        f"key = verdicts.Key(**{vars(key)!r}); [verdicts.add(key, {{f'k{{i % 3}}': {PASSED!r}}}) for i in range(60)]"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "kernels")]) for _ in range(2)]
    seen = 0
    while any(process.poll() is None for process in processes):
        seen += bool(verdicts.read(key))
        time.sleep(0.001)
    assert [process.returncode for process in processes] == [0, 0] and seen
    assert set(verdicts.read(key)) <= {"k0", "k1", "k2"} and len(list(key.path.parent.iterdir())) == 1


def test_one_checks_and_the_others_wait(key):
    order = []

    def work(name):
        with verdicts.alone(key, 10):
            order.append(name)
            time.sleep(0.3)
            order.append(name)

    threads = [threading.Thread(target=work, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert order in (list("aabb"), list("bbaa"))


def test_whoever_has_waited_long_enough_goes_on(key):
    with verdicts.alone(key, 1), verdicts.alone(key, 0.3):
        pass


def test_the_first_start_checks_and_the_next_ones_read(key, caplog):
    run = checks()
    assert check.left_out(key, "20b", run=run) == {} and run.asked == [(list(CHECKS), "20b")]
    (record,) = caplog.records
    assert record.getMessage().startswith("The kernels were never checked on this NVIDIA H200")
    caplog.clear()
    assert check.left_out(key, "20b", run=run) == {} and len(run.asked) == 1 and not caplog.records
    assert check.left_out(key, "120b", run=run) == {}
    assert run.asked[1] == (["router", "route", "moe_gate_up", "moe_down", "moe_grouped", "together"], "120b"), "only what has other shapes"


def test_what_is_bad_is_left_out_by_name_with_one_warning(key, caplog):
    bad = {"route": "hung", "unembed": "wrong", "add_norm": "unchecked"}
    found = check.left_out(key, "20b", run=checks(**bad))
    assert found == {name: f"{verdict}: told so" for name, verdict in bad.items()}
    assert len(caplog.records) == 2 and "in place of the kernels unembed (wrong: told so), route (hung: told so)" in caplog.text
    caplog.clear()
    again = checks()
    assert set(check.left_out(key, "20b", run=again)) == {"route", "unembed"}
    assert again.asked == [(["add_norm"], "20b")], "of what could not be checked nothing is kept"


def test_a_check_that_is_stopped_keeps_what_it_has_found(key, caplog):
    """And the next one runs the rest, all together without what is known to be bad."""

    def run(kernels, preset, *, told, **options):
        told(Outcome("unembed", "passed", "", PASSED["cases"]))
        told(Outcome("route", "hung", "told so"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.left_out(key, "20b", run=run)
    rest = checks()
    assert check.left_out(key, "20b", run=rest) == {"route": "hung: told so"}
    assert rest.asked == [([name for name in CHECKS if name not in ("unembed", "route")], "20b")] and rest.without == ["route"]


def test_what_fails_together_leaves_out_a_decode_step(key, caplog):
    found = check.left_out(key, "20b", run=checks(together="wrong", route="hung"))
    assert set(found) == set(selection.DECODING) == set(KERNELS) - {"attention_prefill", "moe_grouped"}
    assert found["route"] == "hung: told so" and found["unembed"] == "together with others wrong: told so"
    assert check.left_out(key, "20b", run=None) == found and "unembed (together with others wrong" in caplog.text


def test_together_comes_last_and_without_what_is_bad(monkeypatch):
    asked = []

    def in_turn(kernels, command, right, **options):
        asked.append([command(kernel) for kernel in kernels])
        return outcomes(kernels, route="hung")

    monkeypatch.setattr(watching, "in_turn", in_turn)
    assert [each.kernel for each in check.run(["together", "route", "unembed"])] == ["route", "unembed", "together"]
    check.run(["together"], without=["unembed"])
    assert asked[-1][0][-1] == "--without=unembed"
    assert asked[1][0][-1] == "--without=route" and not any("without" in word for words in asked[0] for word in words[:-1])


def test_a_check_that_raises_leaves_nothing_behind(key):
    def run(*_, **__):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check.left_out(key, "20b", run=run)
    assert verdicts.read(key) == {} and check.left_out(key, "20b", run=checks()) == {}


@pytest.mark.parametrize("preset", check.PRESETS)
def test_every_kernel_is_checked_at_true_shapes(preset):
    for kernel in KERNELS:
        cases = selection.cases(kernel, preset)
        assert len(cases) >= 2 and not any(case.compares for case in cases)
    with pytest.raises(ValueError, match="checked for one of 20b, 120b; got 'route', '7b'"):
        selection.cases("route", "7b")


@pytest.mark.parametrize("asked, words", [((["rout"], "20b"), "kernels must be of"), ((["route"], "7b"), "preset must be one of 20b")])
def test_what_nobody_can_check_is_refused(asked, words):
    with pytest.raises(ValueError, match=words):
        check.run(*asked)


def test_a_child_dies_with_the_one_that_asked():
    command = [sys.executable, "-m", "pallas_kernels.check.child", "--kernel=route", "--report=1"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert done.returncode == 3
