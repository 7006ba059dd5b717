"""The loop of a job: requests out of the input into the model, outcomes into the journal, the journal into the output."""

from collections.abc import Iterator, Mapping
import contextlib
import dataclasses
from pathlib import Path

from gptoss_jax.batch import files, lines, results, shards, source
from gptoss_jax.batch.draining import Draining
from gptoss_jax.batch.journal import Journal
from gptoss_jax.batch.lines import Line
from gptoss_jax.batch.shards import Shard
from gptoss_jax.batch.source import Source
from gptoss_jax.openai.asked import Defaults
from gptoss_jax.openai.errors import INTERNAL, Refused, refusal_of
from gptoss_jax.openai.writing import usage
from gptoss_jax.quoting import quoted
from gptoss_jax.turns.task import Outcome, Task


class Job:
    """One input, or a shard of it, on its way to one output. Holds the output for itself until it is closed.

    Args:
        given: the input.
        output: of the whole job; a shard's file has its name from it.
        settings: what must be the same when the job goes on, and in all its shards. Plain JSON.
        defaults: for requests that say nothing.
        shard: which part of the input.
        private: the journal and the output are their owner's alone, mode 0600.

    A line ends nothing but itself: whatever its reading, its answer or its result raises becomes its result, and the others go on. Memory
    that is exhausted and a journal that cannot be written end the job.

    Raises:
        ValueError: another process writes this output, or what was begun was another job.
        OSError: the output's folder cannot be written.
    """

    def __init__(self, given: Source, output: Path, settings: Mapping, defaults: Defaults, shard: Shard, *, private: bool = False):
        self._given, self._defaults, self._shard, self._private = given, defaults, shard, private
        self._begun: dict[int, dict[int, Outcome]] = {}  # of lines with several tasks, those that are done, by their place
        self.path = shard.path(output)
        self._about = {"input": given.identity, "settings": dict(settings)}
        whole = self._about | {"shard": [shard.index, shard.count]}
        self.journal = Journal(shards.partial(self.path), whole, shard.places(given.records), private=private)

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        refused = kind is not None and issubclass(kind, Exception)
        if refused and not self.journal.totals.done:  # there is nothing to go on with
            self.journal.remove()
        self.journal.close()

    def run(self, llm, draining: Draining) -> None:
        """Answers what is missing, or as much of it as there is time for.

        Args:
            llm: an `LLM`, or whatever has its `run` and `model`.
        """
        with contextlib.closing(draining.until_time_is_up(llm.run(self._tasks(draining)))) as outcomes:
            for outcome in outcomes:
                self._keep(outcome, llm.model.tokenizer)

    def finish(self) -> None:
        """Writes the output, all at once, and removes the journal. Raises ValueError where results are missing."""
        if self.journal.missing:
            raise ValueError(
                f"every request must have a result; {self.journal.missing:,} have none; leave the input as it is and start again."
            )
        with files.written_whole(self.path, private=self._private) as file:
            if self._shard.count > 1:
                file.write(shards.header(self._shard, self._about))
            for line in self.journal.results():
                file.write(line)
        self.journal.remove()

    def _tasks(self, draining: Draining) -> Iterator[Task]:
        """What the model has to do, read as it is asked for; what cannot be done is written down on the way."""
        ids = source.Ids()
        for record, number, text in source.records(self._given):
            if draining.asked:
                return
            line, new = self._line(number, text, ids)
            place = self._shard.place(record)
            if place is None or self.journal.has(place):
                continue
            try:
                if not new:
                    raise Refused(
                        f"ids must differ; {quoted(line.id)} is that of an earlier line too; give this one another.", "duplicate_id"
                    )
                request = lines.read(line, self._defaults)
                tasks = [dataclasses.replace(task, key=(place, request, i)) for i, task in enumerate(request.tasks)]
            except Exception as error:
                refusal = refusal_of(error)
                with draining.uninterrupted():
                    self.journal.add(place, results.refused(line, refusal), error=True)
            else:
                yield from tasks

    def _line(self, number: int, text: bytes | None, ids: source.Ids) -> tuple[Line, bool]:
        """A line, and whether its id is new. `text` None: it is too long."""
        try:
            line = lines.too_long(number, self._given.most) if text is None else lines.parse(text, number)
            return line, line.key is None or ids.add(line.key)
        except Exception as error:
            return lines.unreadable(number, error), True

    def _keep(self, outcome: Outcome, tokenizer) -> None:
        place, request, index = outcome.task.key
        outcomes = self._begun.setdefault(place, {})
        outcomes[index] = outcome
        if len(outcomes) < len(request.tasks):
            return
        outcomes = [outcomes[i] for i in sorted(self._begun.pop(place))]
        try:
            for one in outcomes:
                if one.error is not None:
                    raise lines.refused(request, one.error, INTERNAL if one.failed else "invalid_request")
            result = results.answered(request, outcomes, tokenizer)
        except Exception as error:
            self.journal.add(place, results.refused(request.line, refusal_of(error)), error=True)
        else:
            self.journal.add(
                place, result, error=False, tokens_in=sum(one.prompt_tokens for one in outcomes), tokens_out=usage.written(outcomes)
            )
