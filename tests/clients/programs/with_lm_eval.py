"""lm-eval at the server that SERVER names: sums by local-chat-completions, and answers that are scored by local-completions."""

import json
import os
from pathlib import Path
import tempfile

import lm_eval
from lm_eval.tasks import TaskManager

DATA = """
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/sums.jsonl}}}}
test_split: test
doc_to_text: "{{{{question}}}}"
"""
SUMS = """
task: sums
doc_to_target: "{{answer}}"
output_type: generate_until
generation_kwargs: {until: ["no such text"], max_gen_toks: 400, temperature: 0}
filter_list: [{name: number, filter: [{function: regex, regex_pattern: "([0-9]+)"}, {function: take_first}]}]
metric_list: [{metric: exact_match}]
"""
ODDS = """
task: odds
doc_to_target: 0
doc_to_choice: ["{{answer}}", "no idea at all"]
output_type: multiple_choice
metric_list: [{metric: acc}]
"""

url, folder = os.environ["SERVER"], Path(tempfile.mkdtemp())
sums = [{"question": f"What is {a} + 2?", "answer": str(a + 2)} for a in range(40, 44)]
(folder / "sums.jsonl").write_text("".join(json.dumps(one) + "\n" for one in sums))
for name, text in (("sums", SUMS), ("odds", ODDS)):
    (folder / f"{name}.yaml").write_text(text + DATA.format(folder=folder))
tasks = TaskManager(include_path=str(folder), include_defaults=False)
how = {"model": "nano", "base_url": f"{url}/chat/completions", "num_concurrent": 2, "max_retries": 1, "tokenizer_backend": None}
found = lm_eval.simple_evaluate("local-chat-completions", model_args=how, tasks=["sums"], apply_chat_template=True, task_manager=tasks)
assert found["results"]["sums"]["exact_match,number"] >= 0.75, found["results"]
how = {"model": "nano", "base_url": f"{url}/completions", "max_retries": 1, "tokenizer_backend": "remote"}
found = lm_eval.simple_evaluate("local-completions", model_args=how, tasks=["odds"], task_manager=tasks)
assert 0 <= found["results"]["odds"]["acc,none"] <= 1, found["results"]
