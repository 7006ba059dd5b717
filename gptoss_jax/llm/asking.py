"""What is asked of an LLM beside new text: the ids of a prompt, and log-probabilities of given tokens."""

from collections.abc import Sequence
from typing import overload

import numpy as np

from gptoss_jax import harmony
from gptoss_jax.engine.engine import Engine
from gptoss_jax.research import scoring
from gptoss_jax.research.scoring import PromptLogprobs
from gptoss_jax.sampling.options import Sampling, check_given, check_known, check_top
from gptoss_jax.tokenizer import Tokenizer
from gptoss_jax.turns import replays
from gptoss_jax.turns.completion import Completion
from gptoss_jax.turns.doors import FURTHER, door
from gptoss_jax.turns.prompts import Prompt, ids_of, is_one_prompt
from gptoss_jax.turns.task import Messages
from gptoss_jax.weights.loading import Model


class Asking:
    """The calls of an LLM that draw nothing."""

    model: Model
    engine: Engine
    _scores: set[tuple[bool, bool]]  # programs of `score` that are compiled: with the most probable tokens or not, with given ones or not

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises ValueError where its checkpoint has none."""
        if self.model.tokenizer is None:
            raise ValueError("this checkpoint has no tokenizer; pass token ids, or put its tokenizer.model beside config.json.")
        return self.model.tokenizer

    @door()
    def score(
        self, prompt: Prompt, continuations: Prompt | Sequence[Prompt], *, adapter: str | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """Natural-log probability of every token of each continuation after the prompt; what they begin with in common is computed once.

        Under the model's own distribution, that is before bias, penalties, temperature, filters and masks. Alone or in a list, and whatever
        else is in the list, the numbers are the same to the bit.

        Args:
          prompt: text or token ids, at least one token.
          continuations: one, or a list. Text is encoded by itself, not together with the prompt.
          adapter: name of one that is attached; None for none.

        Returns:
          A float32 array with one entry per token, or for a list of continuations a list of them in the same order.
        """
        single = is_one_prompt(continuations, "continuation")
        prompt = ids_of(self, prompt)
        self.engine.check(prompt, room=0)
        rest = [ids_of(self, one, "continuation") for one in ([continuations] if single else continuations)]
        if not all(rest):
            raise ValueError("a continuation needs at least one token; got none; pass some text or token ids.")
        found = scoring.run(self.engine, [[*prompt, *ids] for ids in rest], adapter=adapter, compiled=self._scores)
        scores = [one.logprobs[len(prompt) - 1 :] for one in found]
        return scores[0] if single else scores

    @door()
    def prompt_logprobs(
        self,
        prompts: Prompt | Sequence[Prompt],
        top: int = 0,
        *,
        token_ids: Sequence[int] | None = None,
        adapter: str | None = None,
    ) -> PromptLogprobs | list[PromptLogprobs]:
        """What the model says of every token of a prompt after the first, as `score` does; also of the most probable ones, and given ones.

        Args:
          prompts: one, as text or token ids, or a list; what they begin with in common is computed once.
          top: how many of the most probable ids to report for each place, 20 at most.
          token_ids: ids whose log-probabilities to report for each place, whatever stands there: 128 at most, each once.
          adapter: name of one that is attached; None for none.
        """
        check_top("top", top)
        given = check_given("token_ids", token_ids)
        check_known("token_ids", given, self.model.config.vocab_size)
        single = is_one_prompt(prompts)
        sequences = [ids_of(self, one) for one in ([prompts] if single else prompts)]
        found = scoring.run(self.engine, sequences, top or 0, given, adapter=adapter, compiled=self._scores)
        return found[0] if single else found

    @door()
    def replay(
        self,
        prompt: Prompt | Sequence[Prompt],
        tokens: Sequence[int] | Sequence[Sequence[int]],
        *,
        top_logprobs: int | None = None,
        sampling: Sampling | Sequence[Sampling] | None = None,
        adapter: str | None = None,
    ) -> Completion | list[Completion]:
        """Takes given tokens as if they had been drawn, in the programs that draw: their log-probabilities come out the same to the bit.

        That is, as the same LLM reported them when it generated these tokens from this prompt: with whatever sampling or response_format,
        beside whatever else. They are of the model's own distribution, before bias, penalties, temperature, filters and masks.
        All tokens are taken, also those that end a turn in the middle. `score` gives nearly the same numbers, sooner.

        Args:
          prompt: text or token ids, or a list of prompts. That of a chat is `render(messages, ...)`.
          tokens: ids, at least one: those of a Completion or Reply; a list of them for a list of prompts.
          top_logprobs: how many of the most probable tokens to report, 20 at most; 0 for none, None for as many as `sampling` says.
          sampling: that of the generation, or a list with one for each prompt: what else it has reported (`logprob_token_ids`,
            `processed_logprobs`) comes out the same to the bit too, but for masks: what a response_format or tools forbade is not known
            here. What it says of seeds and ends has no say.
          adapter: name of the one that the tokens were generated with, which must be attached; None for none.

        Returns:
          A Completion with `logprobs`, or a list of them. Its finish_reason is "stop" where the last token ends a turn (one of
          `model.eos_token_ids`, <|return|>, <|call|>), otherwise "length": stop strings and stop_token_ids are not known here.

        Raises:
          ValueError: as for `generate`; tokens are missing, not of the vocabulary, too many for the context; not as many lists as prompts.
        """
        single = is_one_prompt(prompt)
        prompts, tokens = ([prompt], [tokens]) if single else (prompt, tokens)
        found = replays.replay(self, prompts, tokens, top_logprobs, sampling, adapter)
        return found[0] if single else found

    @overload
    def render(self, messages: Messages, *, train_on: None = None, **options) -> list[int]: ...

    @overload
    def render(self, messages: Messages, *, train_on: harmony.TrainOn, **options) -> harmony.Rendered: ...

    @door(*FURTHER, "reasoning_effort", "tools")
    def render(self, messages: Messages, *, train_on: harmony.TrainOn | None = None, **options) -> list[int] | harmony.Rendered:
        """The token ids of the prompt that `chat` would make of messages, or a whole conversation with where loss belongs in it.

        Args:
          messages: as for `chat`.
          train_on: None for the prompt. For a conversation that ends with the assistant's turn what is to be learnt: "final" (answers),
            "calls" (of tools), "assistant" (all that the model writes), or a function that says so of each `harmony.RenderedMessage`.
          **options: as for `chat`.

        Returns:
          Ids; with `train_on` a `harmony.Rendered`, ids with a mask of one bool for each, see `harmony.render_for_training`.

        Raises:
          ValueError: messages, options or `train_on` are not valid.
        """
        messages = [{"role": "user", "content": messages}] if isinstance(messages, str) else messages
        if train_on is None:
            return harmony.render(self.tokenizer, messages, **options)
        if options.pop("continue_final_message", False) is not False:
            raise ValueError("train_on takes whole conversations, whose last message has ended; leave continue_final_message out.")
        return harmony.render_for_training(self.tokenizer, messages, train_on, **options)
