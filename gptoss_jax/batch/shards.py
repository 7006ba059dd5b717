"""A job in parts: which requests are a shard's, what its file is called, and how the files become one.

Shard i of n has the requests i, i + n, i + 2 n ... of the input, blank lines not counted. Its file begins with a line about it.
"""

from collections.abc import Iterator, Mapping
import dataclasses
import json
from pathlib import Path
import re

from gptoss_jax.batch import files

_LAUNCHERS = {  # variables with a process' number and how many there are
    "SLURM": ("SLURM_PROCID", "SLURM_NTASKS"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    "PMI": ("PMI_RANK", "PMI_SIZE"),
}
_NAME = re.compile(r"\.shard-(\d{5})-of-(\d{5})")


@dataclasses.dataclass(frozen=True)
class Shard:
    """Part `index` of `count`, from 0. Raises ValueError where there is no such part."""

    index: int = 0
    count: int = 1

    def __post_init__(self):
        if not 0 <= self.index < self.count <= 99_999:
            raise ValueError(f"--shard_index must lie in 0 ... --shard_count - 1; got {self.index} of {self.count}; the first is 0.")

    def place(self, record: int) -> int | None:
        """Where in this shard's results a request of the input belongs; None where it is another's."""
        return record // self.count if record % self.count == self.index else None

    def places(self, records: int) -> int:
        """How many of so many requests are this shard's."""
        return len(range(self.index, records, self.count))

    def path(self, output: Path) -> Path:
        """Its file, for a job whose file is `output`: results.jsonl.gz is in parts results.jsonl.shard-00000-of-00008.gz and so on."""
        if self.count == 1:
            return output
        stem, suffix = _stem(output)
        return output.with_name(f"{stem}.shard-{self.index:05d}-of-{self.count:05d}{suffix}")


def from_launcher(environment: Mapping[str, str]) -> tuple[Shard, str] | None:
    """The shard of a process that SLURM, Open MPI or a PMI launcher started as one of several, and who says so."""
    for launcher, (number, count) in _LAUNCHERS.items():
        if environment.get(number, "").isdecimal() and environment.get(count, "").isdecimal() and int(environment[count]) > 1:
            return Shard(int(environment[number]), int(environment[count])), launcher
    return None


def header(shard: Shard, job: Mapping) -> bytes:
    """The first line of a shard's file. `job` is what must be the same in all."""
    return json.dumps({"shard": shard.index, "of": shard.count, **job}, sort_keys=True).encode() + b"\n"


def merged(output: Path) -> Iterator[bytes]:
    """The lines of a job whose shards are all finished, in the order of its input.

    Raises:
        ValueError: a shard is missing or unfinished, they are of different jobs, or there are more or fewer results than requests.
    """
    paths = _complete(output)
    streams = [files.lines(path) for path in paths]
    headers = [_header(path, next(stream, b""), Shard(i, len(paths))) for i, (path, stream) in enumerate(zip(paths, streams, strict=True))]
    for path, other in zip(paths, headers, strict=True):
        if other != headers[0]:
            raise ValueError(f"shards must be of one job; {path} is of another input or other flags than {paths[0].name}; run it again.")
    count = headers[0]["input"]["records"]
    for record in range(count):
        line = next(streams[record % len(paths)], b"")
        if not line.endswith(b"\n"):
            raise ValueError(_amount(paths, record, count))
        yield line
    for i, stream in enumerate(streams):
        if next(stream, None) is not None:
            raise ValueError(_amount(paths, i, count))


def _amount(paths: list[Path], record: int, count: int) -> str:
    shard = Shard(record % len(paths), len(paths))
    wanted = shard.places(count)
    return f"a shard must have one result for each of its requests; {paths[shard.index]} has not {wanted:,}; remove it and run it again."


def _complete(output: Path) -> list[Path]:
    """The files of all shards. Raises ValueError where one is not there."""
    stem, suffix = _stem(output)
    found: dict[int, set[int]] = {}
    for path in output.parent.glob(f"{_escape(stem)}.shard-*"):
        match = _NAME.fullmatch(path.name.removeprefix(stem).removesuffix(".partial").removesuffix(suffix))
        if match:
            found.setdefault(int(match[2]), set()).add(int(match[1]))
    if len(found) != 1:
        numbers = " and of ".join(map(str, sorted(found))) or "none"
        raise ValueError(
            f"there must be the shards of one job beside {output}; found those of {numbers}; check --output, remove the others."
        )
    (count,) = found
    paths = [Shard(i, count).path(output) for i in range(count)]
    missing = [i for i, path in enumerate(paths) if not path.exists()]
    if missing:
        unfinished = [i for i in missing if partial(paths[i]).exists()]
        begun = f" ({_numbers(unfinished)} begun, not finished)" if unfinished else ""
        raise ValueError(
            f"all {count} shards must be finished; of {output} {_numbers(missing)} missing{begun}; run the job's command for them."
        )
    return paths


def partial(path: Path) -> Path:
    """The journal of a job that writes `path`."""
    return path.with_name(path.name + ".partial")


def _header(path: Path, line: bytes, shard: Shard) -> dict:
    """What a shard's first line says of its job."""
    try:
        told = json.loads(line)
        if (told.pop("shard"), told.pop("of")) == (shard.index, shard.count) and isinstance(told["input"]["records"], int):
            return told
    except (ValueError, TypeError, KeyError, AttributeError):
        pass
    raise ValueError(f"{path} must begin with a line about shard {shard.index} of {shard.count}; it does not; remove it and run it again.")


def _stem(output: Path) -> tuple[str, str]:
    suffix = output.suffix if output.suffix in files.COMPRESSED else ""
    return output.name.removesuffix(suffix), suffix


def _escape(text: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", text)


def _numbers(shards: list[int]) -> str:
    shown = ", ".join(map(str, shards[:10])) + (f" and {len(shards) - 10} more" if len(shards) > 10 else "")
    return f"number {shown} {'is' if len(shards) == 1 else 'are'}"
