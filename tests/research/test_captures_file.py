"""A capture in one file: what is written, what is read, and what is none."""

import errno

import jax.numpy as jnp
import numpy as np
import pytest

from gptoss_jax.research.activations import load, save

ROWS = np.random.default_rng(0).standard_normal((7, 2, 3)).astype(np.float32)


def test_a_capture_in_one_file(tmp_path):
    values = {"layers.0.residual_post": jnp.asarray(ROWS), "file": np.arange(3), "empty": np.zeros((0, 2))}
    path = tmp_path / "seen.npz"
    save(path, {"x": ROWS})
    save(path, values)
    got = load(path)
    assert list(got) == list(values) == np.load(path).files
    assert all(np.array_equal(got[name], value) and got[name].dtype == value.dtype for name, value in values.items())
    assert [one.name for one in tmp_path.iterdir()] == ["seen.npz"]


def test_a_file_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    path = tmp_path / "seen.npz"
    save(path, {"x": ROWS})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np.lib.format, "write_array", full)
    with pytest.raises(OSError, match="No space left"):
        save(path, {"x": ROWS[:1]})
    assert np.array_equal(load(path)["x"], ROWS) and [one.name for one in tmp_path.iterdir()] == ["seen.npz"]


def test_files_and_values_that_are_none(tmp_path):
    for values in ({}, None, [ROWS]):
        with pytest.raises(ValueError, match="values must be arrays by name, one at least; got"):
            save(tmp_path / "x.npz", values)
    with pytest.raises(ValueError, match=r"x must hold numbers .*; got 'object'"):
        save(tmp_path / "x.npz", {"x": np.array([None])})
    with pytest.raises(ValueError, match=r"x must be an array; got \[\[1\], \[2, 3\]\]"):
        save(tmp_path / "x.npz", {"x": [[1], [2, 3]]})
    with pytest.raises(ValueError, match="x must be an array without a mask"):
        save(tmp_path / "x.npz", {"x": np.ma.array(ROWS, mask=ROWS > 0)})
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=r"path must name a file or a folder; got 'a"):
        load("a\0b")
    with pytest.raises(ValueError, match=r"path must end with \.npz; got '.*x\.npy'"):
        save(tmp_path / "x.npy", {"x": ROWS})
    (tmp_path / "no.npz").write_bytes(b"PK\3\4 and no more")
    np.save(tmp_path / "one.npy", ROWS)
    for name in ("no.npz", "one.npy"):
        with pytest.raises(ValueError, match=r"path must be an \.npz file of arrays; got"):
            load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "absent.npz")
