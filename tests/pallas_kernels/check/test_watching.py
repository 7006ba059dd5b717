"""A check is watched from outside: processes that fail, hang, crash, print garbage, eat memory or lie become verdicts, and are gone."""

import math
import os
import sys
import time

import pytest

from pallas_kernels.check import watching

LIMITS = dict.fromkeys(watching.LIMITS, 5.0) | {"run": 0.5, "compile": 0.6}
PREFACE = """
import json, os, signal, sys, time
report = os.fdopen(int(sys.argv[-1].partition("=")[2]), "w", buffering=1)
tell = lambda phase, **more: report.write(json.dumps({"phase": phase} | more) + "\\n")
sys.stdin.readline()
tell("device"); tell("reference", case="c")
"""
GOOD = PREFACE + 'tell("compile", case="c"); tell("run", case="c"); tell("done", case="c", error=1e-3, worst=1e-2, same=True); tell("end")'
NUMBERS = 'tell("compile", case="c"); tell("run", case="c"); tell("done", case="c", error=%s, worst=%s, same=%s); tell("end")'


def right(error: float, worst: float) -> bool:
    return error <= 0.01 and worst <= 0.1


def command(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def outcome(code: str, limits=LIMITS) -> watching.Outcome:
    return watching.Child(command(PREFACE + code), limits).watch("route", right)


RUN = 'tell("compile", case="c"); tell("run", case="c"); '
BAD = {
    "fails": (RUN + 'tell("failed", kind="XlaRuntimeError", message="INTERNAL: an illegal\\naddress")', "failed", "an illegal address"),
    "hangs": (RUN + "time.sleep(60)", "hung", "not done in 'c' after 0.5 s"),
    "hangs and prints": (RUN + "\nwhile True: print('x' * 9999, flush=True)", "hung", "not done in 'c'"),
    "ignores signals": (RUN + "[signal.signal(s, signal.SIG_IGN) for s in (2, 15, 1)]; time.sleep(60)", "hung", "not done"),
    "compiles for ever": ('tell("compile", case="c"); time.sleep(60)', "hung", "not compiled in 'c' after 0.6 s"),
    "crashes": (RUN + "print('Fatal: address', flush=True); os.kill(os.getpid(), 11)", "crashed", "SIGSEGV in 'c'; its last words: Fatal"),
    "aborts": (RUN + "os.abort()", "crashed", "SIGABRT"),
    "says garbage": (RUN + "report.write('\\x00 no JSON\\n'); time.sleep(60)", "failed", "what no check says"),
    "says garbage without an end": (RUN + "report.write('[' * 200000); report.flush(); time.sleep(60)", "failed", "what no check says"),
    "says a list": (RUN + "report.write('[1]\\n'); time.sleep(60)", "failed", "what no check says"),
    "says another phase": (RUN + "tell('lunch'); time.sleep(60)", "failed", "what no check says"),
    "says no numbers": (RUN + "tell('done', case='c', error='x', worst=1, same=True); time.sleep(60)", "failed", "what no check says"),
    "is wrong": (NUMBERS % ("0.5", "0.02", "True"), "wrong", "'c' is off by 0.5, at worst 0.02"),
    "is NaN": (NUMBERS % ("float('nan')", "0.0", "True"), "wrong", "'c' is off by nan"),
    "differs": (NUMBERS % ("0.0", "0.0", "False"), "wrong", "'c' differs from run to run"),
    "leaves": (RUN + "sys.exit(0)", "failed", "ended with status 0 in 'c', without a result"),
    "falls silent": (RUN + "report.close(); time.sleep(60)", "failed", "fell silent"),
    "has no memory": (RUN + "tell('failed', kind='XlaRuntimeError', message='RESOURCE_EXHAUSTED: 9 GB')", "unchecked", "not enough memory"),
    "is killed by others": (RUN + "os.kill(os.getpid(), 9)", "unchecked", "as where memory runs out"),
    "fails before": ("tell('failed', kind='ImportError', message='no jax')", "unchecked", "ImportError in 'c': no jax"),
    "crashes before": ("os.kill(os.getpid(), 11)", "unchecked", "SIGSEGV"),
}


@pytest.mark.parametrize("name", BAD)
def test_whatever_a_process_does_becomes_a_verdict(name):
    code, verdict, why = BAD[name]
    limits = LIMITS | {"end": 0.3}
    began = time.monotonic()
    got = outcome(code, limits)
    assert (got.verdict, why in got.why) == (verdict, True), got
    assert time.monotonic() - began < 10 and not got.stuck and len(got.why) < 900


def test_a_check_that_passes():
    got = watching.Child(command(GOOD), LIMITS).watch("route", right)
    assert got == watching.Outcome("route", "passed", "", {"c": {"error": 1e-3, "worst": 1e-2}}, got.seconds)


def test_memory_that_is_eaten_is_no_verdict():
    eat = "import resource as r; r.setrlimit(r.RLIMIT_AS, (1 << 28, 1 << 28))\ntry: x = bytearray(1 << 30)\nexcept MemoryError as e: "
    got = outcome(RUN + eat + "tell('failed', kind='MemoryError', message=str(e))")
    assert got.verdict == "unchecked" and "not enough memory" in got.why


def test_numbers_of_what_went_before_are_kept():
    two = 'tell("done", case="c", error=0.0, worst=math.nan, same=True); tell("reference", case="d"); tell("run", case="d"); time.sleep(60)'
    got = outcome("import math; " + RUN + two)
    assert got.verdict == "hung" and "in 'd'" in got.why and math.isnan(got.cases["c"]["worst"])


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_whole_group_is_killed(tmp_path):
    file = tmp_path / "pid"
    fork = f"import subprocess; p = subprocess.Popen(['sleep', '60']); open({str(file)!r}, 'w').write(str(p.pid)); "
    got = outcome(fork + RUN + "time.sleep(60)")
    assert got.verdict == "hung"
    until = time.monotonic() + 5
    while alive(int(file.read_text())) and time.monotonic() < until:
        time.sleep(0.01)
    assert not alive(int(file.read_text()))


def test_kernels_are_checked_in_turn_and_one_starts_ahead(tmp_path):
    started = lambda name: f"open({str(tmp_path)!r} + '/{name}', 'w').close(); "
    codes = {"a": RUN + "time.sleep(60)", "b": NUMBERS % ("0.0", "0.0", "True"), "c": NUMBERS % ("0.0", "0.0", "True")}
    seen = []

    def told(outcome):
        seen.append((outcome.kernel, outcome.verdict, sorted(os.listdir(tmp_path))))

    outcomes = watching.in_turn(list(codes), lambda k: command(started(k) + PREFACE + codes[k]), right, limits=LIMITS, told=told)
    assert [each.verdict for each in outcomes] == ["hung", "passed", "passed"]
    assert seen[0] == ("a", "hung", ["a", "b"]) and seen[2][2] == ["a", "b", "c"]


@pytest.mark.parametrize("ahead", [0, 1, 5])
def test_no_process_is_left_where_the_caller_is_interrupted(tmp_path, ahead):
    def told(outcome):
        raise KeyboardInterrupt

    code = f"import os; open({str(tmp_path)!r} + '/' + str(os.getpid()), 'w').close(); "
    command_of = lambda kernel: command(code + PREFACE + NUMBERS % ("0.0", "0.0", "True"))
    with pytest.raises(KeyboardInterrupt):
        watching.in_turn("abcd", command_of, right, limits=LIMITS, ahead=ahead, told=told)
    assert not [pid for pid in os.listdir(tmp_path) if alive(int(pid))]


def test_where_nothing_can_be_checked_it_is_not_tried_for_long():
    outcomes = watching.in_turn("abcd", lambda kernel: command("1 / 0"), right, limits=LIMITS)
    assert {each.verdict for each in outcomes} == {"unchecked"}
    assert ["ZeroDivisionError" in each.why for each in outcomes] == [True] * 4 and "nothing can be checked here" in outcomes[2].why


def test_a_check_has_an_end():
    outcomes = watching.in_turn("ab", lambda kernel: command(PREFACE + RUN + "time.sleep(60)"), right, limits=LIMITS, most=0.1)
    assert [(each.verdict, each.why) for each in outcomes][1] == ("unchecked", "0.1 s were over")
