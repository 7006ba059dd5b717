"""What the kernels' `covers` admit compiles for a Hopper, in a time that a program's first call may take; the rest is refused at the door.

`pytest -m slow tests/pallas_kernels/test_domain.py` goes through all of it, which takes hours: 1,600 calls of 2 seconds and more.
"""

import jax.numpy as jnp
import kernel_domain
from kernel_domain import EVERY, compiled
import pytest

from pallas_kernels import aot

SECONDS = 90  # for a call, on a machine that does much else; alone they take 1 to 8
OPS = ("attention", "qkv", "out", "unembed", "add_norm", "route", "experts", "grouped")
QUICK = ("attention G 1, T 1, R 1, window None", "route M 9, E 29, A 4")
# Of each op a few: where the axes end, where counts are odd, and where once there was no kernel.
SAMPLE = (
    "attention G 1, T 1, R 33, window None", "attention G 1, T 64, R 4, window None", "attention G 1, T 200, R 5, window 1",
    "attention G 64, T 1, R 32, window 128", "attention G 64, T 2, R 33, window None", "attention G 2, T 33, R 1, window 1",
    "attention G 1, T 2, R 2, window None", "attention G 1, T 70, R 40, window None, K 64, B 1",
    "qkv M 1, D 64", "qkv M 64, D 8192", "qkv M 3, G 5, K 7, page 1", "out M 17", "out M 64, D 64", "out M 1, dtype float32",
    "unembed M 64, V 64", "unembed M 33", "unembed M 16, D 64",
    "add_norm M 3, D 64, A 16", "add_norm M 3, D 12672, A 1", "add_norm M 5000, D 128, A 4",
    "route M 64, E 1, A 1", "route M 64, E 7, A 4", "route M 1, E 96, A 4", "route M 64, E 127, A 8",
    "experts M 1, E 1, A 1", "experts M 64, E 96, A 4", "experts M 64, E 2, F 64", "experts M 47, E 8, A 2, D 128, F 128",
    "grouped row 0, E 7, A 4", "grouped row 6, E 128, A 4", "grouped row 4, D 64", "grouped row 5, F 8192",
)  # fmt: skip

pytestmark = pytest.mark.skipif(aot.unavailable() is not None, reason=str(aot.unavailable()))


def check(names):
    found = compiled(names, SECONDS)
    assert found.keys() == set(names)
    assert not {name: told for name, told in found.items() if not isinstance(told, dict)}
    for name, kernels in found.items():
        assert len(kernels) == 1 + (name.split()[0] in ("experts", "grouped")), name
        assert not {kernel for kernel, (_, spilled, _) in kernels.items() if spilled}, name


@pytest.mark.thorough
def test_the_ends_of_some_axes_compile():
    check(QUICK)


@pytest.mark.thorough
def test_a_sample_of_all_that_is_covered_compiles():
    assert {name.split()[0] for name in SAMPLE} == set(OPS)
    check(SAMPLE)


@pytest.mark.slow
@pytest.mark.parametrize("op", OPS)
def test_all_that_is_covered_compiles(op):
    check([name for name in EVERY if name.split()[0] == op])


@pytest.mark.thorough
def test_what_does_not_compile_in_time_is_told(monkeypatch):
    """The process is ended, and another one goes on."""
    found = compiled([QUICK[1], "no such call"], SECONDS)
    assert isinstance(found[QUICK[1]], dict) and found["no such call"].startswith("ended the process")
    monkeypatch.setattr(kernel_domain, "START", 0)
    assert compiled(QUICK[:1], 0.1)[QUICK[0]].startswith("not compiled after")


@pytest.mark.parametrize("call, words", [
    (kernel_domain.attention(3, 1, 1, None), "must divide 64; got 3"),
    (kernel_domain.attention(128, 1, 1, None), "must divide 64; got 128"),
    (kernel_domain.qkv(65), "at most 64 rows"),
    (kernel_domain.out(3, D=96), "multiple of 64 columns and rows"),
    (kernel_domain.out(3, C=96), "multiple of 64 columns and rows"),
    (kernel_domain.add_norm(3, 64 * 256, 8), "do not fit shared memory"),
    (kernel_domain.add_norm(3, 64 * 199, 1), "do not fit shared memory"),
    (kernel_domain.add_norm(3, 96), "multiple of 64 values"),
    (kernel_domain.route(3, 129), "up to 128 experts"),
    (kernel_domain.route(3, 32, 17), "up to 16 experts"),
])  # fmt: skip
def test_what_is_not_covered_is_refused_in_a_sentence(call, words):
    function, arguments = call
    with pytest.raises(NotImplementedError, match=words):
        aot.compile(function, *arguments)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_other_dtypes_are_refused(dtype):
    function, arguments = kernel_domain.attention(8, 1, 1, None)
    q, *rest = arguments
    with pytest.raises(NotImplementedError, match="must be bfloat16"):
        aot.compile(function, kernel_domain.f32(q.shape).update(dtype=dtype), *rest)
