"""Token ids of a prompt, in whatever container a caller has them."""

import dataclasses

from byte_tokenizer import ByteTokenizer
import jax.numpy as jnp
import numpy as np
import pytest
from small_model import small_model

import gptoss_jax as gj

GREEDY = gj.Sampling(temperature=0, max_tokens=24)


@pytest.fixture(scope="module")
def llm():
    return gj.LLM(dataclasses.replace(small_model(), tokenizer=ByteTokenizer()), slots=4, context=64, chunk=16)


class Tensor:
    """What torch's tensors have that is asked of them."""

    def __init__(self, values):
        self._array = np.array(values)
        self.ndim = self._array.ndim

    def __len__(self):
        return len(self._array)

    def __iter__(self):
        return map(Tensor, self._array)

    def tolist(self):
        return self._array.tolist()


@pytest.mark.parametrize("make", [np.array, jnp.array, lambda ids: jnp.array(ids, "uint16"), Tensor], ids=["numpy", "jax", "16", "torch"])
def test_token_ids_in_arrays_of_any_library(llm, make):
    ids, rest = list(b"Hello"), [3, 4]
    done = llm.generate(ids, GREEDY)
    assert llm.generate(make(ids), GREEDY) == llm.generate(list(make(ids)), GREEDY) == done
    assert llm.generate(make([ids, ids]), GREEDY) == llm.generate([make(ids), ids], GREEDY) == [done, done]
    [outcome] = llm.run([gj.Task(prompt=make(ids), sampling=GREEDY)])
    assert outcome.answers == (done,)
    assert llm.score(make(ids), make(rest)).tolist() == llm.score(ids, rest).tolist() == llm.score(ids, make([rest, rest]))[1].tolist()
    assert llm.prompt_logprobs(make(ids)).logprobs.tolist() == llm.prompt_logprobs([make(ids)])[0].logprobs.tolist()
    assert llm.replay(make(ids), make(rest)) == llm.replay(make([ids]), make([rest]))[0] == llm.replay(ids, rest)


def test_texts_in_an_array_are_prompts(llm):
    wanted = llm.generate(["a", "bc"], GREEDY)
    for texts in (np.array(["a", "bc"]), np.array(["a", "bc"], object), np.array([[97], [98, 99]], object)):
        assert llm.generate(texts, GREEDY) == wanted
    assert llm.generate(np.array([97], object), GREEDY) == wanted[0]


def test_other_sequences_of_token_ids(llm):
    ids = list(range(5, 9))
    assert llm.generate(range(5, 9), GREEDY) == llm.generate(tuple(ids), GREEDY) == llm.generate(ids, GREEDY)
