"""Loading onto meshes: each device holds its part of the table, bit for bit, and each part of a file is read once by who needs it."""

import contextlib
import dataclasses
import os
from pathlib import Path
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from checkpoints import synthesize, writer
from gptoss_jax.config import TINY
from gptoss_jax.model.params import abstract_params, is_spec, param_bytes
from gptoss_jax.parallel import memory, sharding
from gptoss_jax.weights import loading, locate, safetensors
from gptoss_jax.weights.orbax import saving, sums
from pallas_kernels import mxfp4
from pallas_kernels.mxfp4 import Mxfp4
from pallas_kernels.mxfp4.tiles import fits, from_tiles

MESHES = [(1, 8), (2, 4), (4, 2), (8, 1)]
CASES = [
    ("tiny", ["packed", "stacked", "split"]),
    ("original", ["packed", "stacked"]),
    ("bf16", ["stacked", "split"]),
    ("nano", ["packed", "tiled", "split"]),
    ("uneven", ["packed", "stacked", "split"]),
]
# Four kv heads; a device's 24 of 96 columns begin and end inside groups of 32.
UNEVEN = dataclasses.replace(
    TINY, num_hidden_layers=1, layer_types=TINY.layer_types[:1], num_attention_heads=8, num_key_value_heads=4, intermediate_size=96
)


def load(path, **options):
    return loading.load(path, **{"experts": "packed", "progress": False} | options)


@pytest.fixture(scope="module")
def paths(tiny, tmp_path_factory):
    """Checkpoint directories by name."""
    made = tmp_path_factory.mktemp("made")
    writer.write(made / "bf16", TINY, load(tiny, experts="stacked").params, "huggingface-bf16")
    synthesize.write_checkpoint(UNEVEN, made / "uneven", "original")
    return {"tiny": tiny, "original": tiny / "original", "bf16": made / "bf16", "nano": "nano", "uneven": made / "uneven"}


@pytest.fixture
def reads(monkeypatch):
    """Of every read from a file the tensor's name, the range and the bytes."""
    found = []

    class View:
        def __init__(self, name, view):
            self._name, self._view = name, view

        def __getattr__(self, name):
            return getattr(self._view, name)

        def __getitem__(self, index):
            values = self._view[index]
            found.append((self._name, index, values.nbytes))
            return values

    class File:
        def __init__(self, file):
            self._file = file

        def keys(self):
            return self._file.keys()

        def get_slice(self, name):
            return View(name, self._file.get_slice(name))

    @contextlib.contextmanager
    def watched(*args, **options):
        with safe_open(*args, **options) as file:
            yield File(file)

    monkeypatch.setattr(safetensors, "safe_open", watched)
    return found


def assert_as_on_one_device(got, want, dtype, form):
    """`got` lies as the table says and holds what `want` does, and zeros where a mesh has widened it."""
    partition = got.params.partition
    table = abstract_params(got.config, dtype, form, partition)
    specs, arrays, plain = (jax.tree.leaves(tree, is_leaf=is_spec) for tree in (table, got.params, want.params))
    assert jax.tree.structure(table, is_leaf=is_spec) == jax.tree.structure(got.params)
    for spec, array, one in zip(specs, arrays, plain, strict=True):
        assert (array.shape, array.dtype, array.sharding) == (spec.shape, spec.dtype, partition.sharding(spec.axes))
        widened = np.zeros(spec.shape, spec.dtype)
        widened[tuple(map(slice, one.shape))] = one
        np.testing.assert_array_equal(np.asarray(array), widened)
        for shard in array.addressable_shards:  # replicas too, which gathering does not look at
            np.testing.assert_array_equal(np.asarray(shard.data), widened[shard.index])
    share = param_bytes(got.config, dtype, form, partition)
    for device in partition.mesh.devices.flat:
        held = [shard.data.nbytes for array in arrays for shard in array.addressable_shards if shard.device == device]
        assert sum(held) == share


@pytest.mark.quick("tiny", "uneven")
@pytest.mark.parametrize(("name", "forms"), CASES, ids=[name for name, _ in CASES])
def test_each_device_holds_its_part_of_the_table(paths, name, forms):
    for form in forms:
        want = load(paths[name], experts=form)
        for data, model in MESHES:
            got = load(paths[name], experts=form, mesh=sharding.mesh(data, model))
            assert_as_on_one_device(got, want, "bfloat16", form)


def test_other_dtypes_and_meshes_of_one_axis(paths):
    model = jax.sharding.Mesh(np.array(jax.devices()[4:6]), ("model",))
    turned = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("model", "data"))
    for mesh in (model, turned):
        for form in ("packed", "stacked"):
            want = load(paths["uneven"], experts=form, dtype="float32")
            assert_as_on_one_device(load(paths["uneven"], experts=form, dtype="float32", mesh=mesh), want, "float32", form)


@pytest.mark.thorough
def test_what_widens_experts_is_zero_in_value(paths):
    for form in ("packed", "tiled"):
        moe = load(paths["nano"], mesh=sharding.mesh(1, 8), experts=form).params.layers[0].moe
        gate_up, down = jax.device_put((moe.gate_up, moe.down), jax.devices()[0])
        gate_up, down = map(jax.jit(from_tiles), (gate_up, down)) if form == "tiled" else (gate_up, down)
        assert gate_up.shape[1] > 2 * 128 and down.shape[2] > 128
        assert not np.asarray(mxfp4.unpack(gate_up)[:, 2 * 128 :]).any() and not np.asarray(mxfp4.unpack(down)[:, :, 128:]).any()
        assert not np.asarray(moe.gate_up_bias[:, 2 * 128 :]).any()
        assert fits(gate_up) and fits(down)


@pytest.mark.parametrize(("data", "model"), MESHES)
def test_each_byte_is_read_once(paths, reads, data, model):
    for name, form in (("tiny", "packed"), ("original", "packed"), ("nano", "tiled"), ("bf16", "split")):
        directory = loading.locate.checkpoint(paths[name])
        stored = safetensors.scan(directory)
        reads.clear()
        load(directory, experts=form, mesh=sharding.mesh(data, model))
        count = {tensor: np.zeros(stored[tensor].shape, np.uint8) for tensor in stored}
        for tensor, index, _ in reads:
            count[tensor][index] += 1
        assert all((times == 1).all() for times in count.values()), name
        assert sum(nbytes for *_, nbytes in reads) == sum(tensor.nbytes for tensor in stored.values())


def test_groups_that_two_devices_share_are_all_that_is_read_twice(paths, reads):
    stored = safetensors.scan(paths["uneven"])
    load(paths["uneven"], experts="stacked", mesh=sharding.mesh(2, 4))
    count = {tensor: np.zeros(stored[tensor].shape, np.uint8) for tensor in stored}
    for tensor, index, _ in reads:
        count[tensor][index] += 1
    for tensor, times in count.items():
        if "mlp2_weight" in tensor:  # down: devices' columns are 0-23, 24-47, 48-71, 72-95, in room for two groups each
            np.testing.assert_array_equal(times[0, 0].reshape(3, -1)[:, 0], [2, 3, 2])
        else:
            assert (times == 1).all()


def test_progress_counts_what_is_read(paths, reads, capsys):
    load(paths["uneven"], experts="stacked", mesh=sharding.mesh(1, 8), progress=True)
    total = sum(nbytes for *_, nbytes in reads)
    bar = capsys.readouterr().err.split("\r")[-1]
    assert f"{total / 1e3:.0f}k/{total / 1e3:.0f}k" in bar or f"{total / 1e6:.2f}M/{total / 1e6:.2f}M" in bar


def test_auto_and_what_the_model_says(tiny, monkeypatch):
    model = load(tiny, experts="auto", mesh=sharding.mesh(2, 4))
    assert isinstance(model.params.layers[0].moe.down, tuple)
    assert repr(model).endswith("6 experts split, bfloat16, no tokenizer, 320 ids, on data=2 x model=4 cpu devices)")
    assert repr(model).startswith("Model(1.11 M weights, ")
    need = 8 * param_bytes(TINY, "bfloat16", "split", model.params.partition)
    for available, kind in ((2 * need - 2, Mxfp4), (2 * need + 2, tuple)):
        monkeypatch.setattr(memory, "host", lambda available=available: available)
        assert isinstance(load(tiny, experts="auto", mesh=sharding.mesh(2, 4)).params.layers[0].moe.down, kind)


def test_a_mesh_that_cannot_divide_the_model_is_refused_before_memory_is_spent(tiny, monkeypatch):
    monkeypatch.setattr(safetensors, "read", lambda *a, **k: pytest.fail("a tensor was read before everything was checked"))
    with pytest.raises(ValueError, match="model axis must divide vocab_size .320.; got 3; use 1, 2, 4, 5, 8, 10, 16"):
        load(tiny, mesh=sharding.mesh(1, 3))
    with pytest.raises(ValueError, match="must have the axes"):
        load(tiny, mesh=jax.sharding.Mesh(np.array(jax.devices()), ("x",)))
    with pytest.raises(ValueError, match="multiples of 64; got 96 and 64"):
        load(tiny, mesh=sharding.mesh(1, 8), experts="tiled")


_PROCESS = """
import json
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
jax.distributed.initialize(f"localhost:{sys.argv[2]}", 2, int(sys.argv[1]))
import numpy as np
from gptoss_jax.parallel import memory, processes, sharding
from gptoss_jax.weights import loading, safetensors

mine = int(sys.argv[1])
good, expanded, damaged, missing, spoilt, saved = sys.argv[3:]
assert processes.is_first() == (mine == 0)
value = np.array([1 << 40, 3 + mine])
np.testing.assert_array_equal(processes.broadcast(value), [1 << 40, 3])

def refused(path, **options):
    try:
        loading.load(path, mesh=mesh, progress=False, **options)
    except (ValueError, FileNotFoundError) as error:
        print("refused:", str(error).replace(str(path), "PATH"), flush=True)

mesh = sharding.mesh(1, 8)
refused(good if mine == 0 else damaged, experts="packed")
refused(good if mine == 0 else missing, experts="packed")
refused(good, experts=("packed", "stacked")[mine])

for path in (spoilt, saved):  # what only the second process reads of them is bad: neither waits for the other
    refused(path, experts="packed", check="finite")
    refused(path, experts="tiled", check="finite")
    loading.load(path, mesh=mesh, progress=False, experts="packed", check=None, verify=False)
both = saved + "-by-both"
loading.save(loading.load("nano", mesh=mesh, progress=False, experts="packed"), both)
loading.load(both, mesh=mesh, progress=False)
print("sums:", len(json.load(open(both + "/params/index.json"))["checksums"]), flush=True)

counted, read = [], safetensors.read
safetensors.read = lambda stored, dtype, index, watch: (counted.append(safetensors.nbytes(stored, index)), read(stored, dtype, index))[1]
loading.load(expanded, mesh=mesh, progress=False)
print("read:", sum(counted), flush=True)
safetensors.read = read

plain = loading.load(good, experts="split", progress=False)
memory.host = lambda: (1 << 40, 1)[mine]  # what process 0 decides from it is what counts
model = loading.load(good, mesh=mesh, progress=False)
for x, one in zip(jax.tree.leaves(model.params), jax.tree.leaves(plain.params), strict=True):
    for shard in x.addressable_shards:
        np.testing.assert_array_equal(shard.data, np.asarray(one)[shard.index])
print("done", flush=True)
"""


def spoilt_for_the_second(home):
    """nano with a NaN among the last rows of lm_head, and with a changed byte in the last chunk of the unembedding."""
    nano = locate.checkpoint("nano")
    shutil.copytree(nano, home / "spoilt")
    tensors = load_file(home / "spoilt" / "model.safetensors")
    tensors["lm_head.weight"][-1, 3] = np.nan
    save_file(tensors, home / "spoilt" / "model.safetensors")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(saving, "_CHUNK_BYTES", 1 << 17)
        patch.setattr(sums, "_SMALL", 0)  # of files as a whole, which every process would see
        model = load("nano")
        loading.save(model, home / "saved")
    last = np.asarray(model.params.unembedding)[-1].tobytes()
    [file] = [file for file in (home / "saved" / "params" / "final").rglob("d/*") if last in file.read_bytes()]
    file.write_bytes(file.read_bytes().replace(last, last[:-1] + bytes([last[-1] ^ 1])))
    return str(home / "spoilt"), str(home / "saved")


@pytest.mark.thorough
def test_two_processes_each_read_their_half_and_agree_or_all_refuse(paths, tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "JAX_PLATFORMS": "cpu"}
    arguments = [port, *(str(paths[name]) for name in ("tiny", "bf16", "uneven")), str(tmp_path / "none"), *spoilt_for_the_second(tmp_path)]
    running = [
        subprocess.Popen(
            [sys.executable, "-c", _PROCESS, str(number), *arguments], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=300) for process in running]
    finally:
        for process in running:
            process.kill()
    assert all(process.returncode == 0 for process in running), outputs
    outputs = [[line for line in out.splitlines() if line.startswith(("refused", "read", "done", "sums"))] for out, _ in outputs]
    first, second = outputs
    same = "give all of them the same files and arguments."
    differs = f"refused: every process must load PATH alike; of 2, process 1 has other config and tensors than process 0; {same}"
    assert first[0] == second[0] == differs
    assert first[1].startswith("refused: every process must be able to load PATH; process 1 could not, for a reason in its own error; ")
    assert second[1] == "refused: there is no checkpoint directory PATH; check the path, or pass 'nano' for the bundled one."
    assert first[2] == second[2] == differs.replace("config and tensors", "arguments")
    whole = ("norm.weight", "router.weight", "router.bias", "o_proj.bias", "down_proj_bias")  # what every device holds all of
    half = sum(tensor.nbytes if name.endswith(whole) else tensor.nbytes // 2 for name, tensor in safetensors.scan(paths["bf16"]).items())
    other = "refused: every process must be able to read PATH; process 1 could not, for a reason in its own error; "
    assert all(line.startswith(other) for line in first[3:7]) and len(first) == 10
    assert all("'lm_head.weight' of PATH/model.safetensors must hold finite numbers" in line for line in second[3:5])
    assert all("unembedding in PATH/params/final must be as it was saved; chunk" in line for line in second[5:7])
    assert first[7:] == second[7:] == ["sums: 63", f"read: {half}", "done"]
