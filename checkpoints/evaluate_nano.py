"""Asks nano held-out questions and prints how many answers are exactly right. An entry point.

    python -m checkpoints.evaluate_nano                                          the table that docs/checkpoints.md states
    python -m checkpoints.evaluate_nano --checkpoint DIRECTORY --per_task 50 --show_wrong 10

The operands of the questions were never trained on, except for greetings and the like, of which there are only a few.
"""

import json
from pathlib import Path

from absl import app, flags

from checkpoints.nano_evaluation import accuracies, grade, questions, table
import gptoss_jax as gj

_CHECKPOINT = flags.DEFINE_string("checkpoint", "nano", "Checkpoint directory, or 'nano' for the bundled one.")
_PER_TASK = flags.DEFINE_integer("per_task", 200, "Questions of each task at each effort.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the questions.")
_SPLIT = flags.DEFINE_enum("split", "test", ("test", "train"), "Operands: held out, or seen in training.")
_SLOTS = flags.DEFINE_integer("slots", 64, "Questions answered side by side.", lower_bound=1)
_SHOW = flags.DEFINE_integer("show_wrong", 0, "Wrong answers to print.", lower_bound=0)
_WRITE = flags.DEFINE_bool("write", False, "Write accuracies.json beside the checkpoint's weights; without it, compare with that file.")


def main(_) -> None:
    model = gj.load(_CHECKPOINT.value, progress=False)
    llm = gj.LLM(model, slots=_SLOTS.value, context=512, chunk=192)
    graded = grade(llm, questions(_PER_TASK.value, _SEED.value, _SPLIT.value))
    rows = accuracies(graded)
    print(table(rows))
    print(f"{len(graded)} questions, split {_SPLIT.value}, seed {_SEED.value}, {_PER_TASK.value} a cell")
    for one in [one for one in graded if not one.right][: _SHOW.value]:
        question = one.example.messages[-1]["content"]
        print(f"{one.example.task} {one.example.effort}: {question!r} wants {one.example.final!r}; got {one.text!r}")
    folder = Path(__file__).parent / "nano" if _CHECKPOINT.value == "nano" else Path(_CHECKPOINT.value)
    asked = {"per_task": _PER_TASK.value, "seed": _SEED.value, "split": _SPLIT.value}
    path = folder / "accuracies.json"
    if _WRITE.value:
        path.write_text(json.dumps(asked | {"accuracies": rows}, indent=2) + "\n", encoding="utf-8")
    elif path.is_file():
        stated = json.loads(path.read_text(encoding="utf-8"))
        if {name: stated[name] for name in asked} == asked:
            print(f"{path} states {'the same' if stated['accuracies'] == rows else 'other accuracies; other hardware rounds differently'}")


if __name__ == "__main__":
    app.run(main)
