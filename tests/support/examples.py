"""Examples in a page of text are run as a reader would run them who opens that page alone."""

import doctest
from pathlib import Path

import jax

AS_A_READER_HAS_IT = {"jax_numpy_dtype_promotion": "standard", "jax_numpy_rank_promotion": "allow"}


def run_examples(page: Path) -> None:
    before = {name: getattr(jax.config, name) for name in AS_A_READER_HAS_IT}
    examples = doctest.DocTestParser().get_doctest(page.read_text(encoding="utf-8"), {}, page.name, str(page), 0)
    assert examples.examples, f"{page.name} has no examples"
    report: list[str] = []
    try:
        for name, value in AS_A_READER_HAS_IT.items():
            jax.config.update(name, value)
        failures = doctest.DocTestRunner(verbose=False).run(examples, out=report.append).failed
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
    assert failures == 0, "".join(report)
