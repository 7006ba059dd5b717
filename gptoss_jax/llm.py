"""LLM: the whole path for a script or a notebook, from text or messages to text or messages.

The only place, with the entry points, that sees both a message and an array.
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import os

import numpy as np

from gptoss_jax import harmony
from gptoss_jax.engine import Engine, FinishReason, Piece, Request
from gptoss_jax.options import Sampling
from gptoss_jax.reply import Reply, ReplyBuilder, ReplyPiece
from gptoss_jax.text import TextStop
from gptoss_jax.tokenizer import STOP, Tokenizer
from gptoss_jax.weights import Model, load

Prompt = str | Sequence[int]
Messages = str | Sequence[Mapping]
CONTEXT = 8192
SECONDS_PER_PIECE = 0.1  # how long a stream may stay silent, where the model is fast enough


@dataclasses.dataclass(frozen=True)
class Completion:
    """The continuation of a prompt.

    Attributes:
      text: without the stop token and without what follows a stop string.
      tokens: ids, the stop token included.
      logprobs: natural log of each token's probability under the model's own distribution; None unless asked for.
      top_logprobs: of each token, the most probable ids and their log-probabilities; None unless asked for.
      finish_reason: "stop" at a stop token or a stop string, "length" at max_tokens or at the end of the context.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...] | None
    top_logprobs: tuple[dict[int, float], ...] | None
    finish_reason: FinishReason


class LLM:
    """One model, ready to answer.

    Args:
      model: a `Model`, or what `load` takes: a checkpoint directory, "nano", or a repository on the Hugging Face hub.
      slots: most requests that run side by side.
      context: most tokens of a prompt and its answer; None is 8,192 or the model's own limit, if that is less.
      chunk: most prompt tokens that are read at a time.

    Raises:
      ValueError, FileNotFoundError: as `load`; or an option is out of range.
    """

    def __init__(self, model: Model | str | os.PathLike = "nano", *, slots: int = 8, context: int | None = None, chunk: int = 512):
        if not isinstance(model, Model):
            model = load(model)
        if context is None:
            context = min(CONTEXT, model.config.max_position_embeddings)
        self.model = model
        self.engine = Engine(model.params, model.config, eos_token_ids=model.eos_token_ids, slots=slots, context=context, chunk=chunk)

    def __repr__(self) -> str:
        return f"LLM({self.model!r}, slots={self.engine.slots}, context={self.engine.context})"

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises ValueError where its checkpoint has none."""
        if self.model.tokenizer is None:
            raise ValueError("this checkpoint has no tokenizer; pass token ids, or put its tokenizer.model beside config.json.")
        return self.model.tokenizer

    def generate(
        self, prompts: Prompt | Sequence[Prompt], sampling: Sampling | Sequence[Sampling] | None = None
    ) -> Completion | list[Completion]:
        """Continues plain text or token ids, with no chat format.

        Args:
          prompts: one prompt, or a list of them. Text never becomes a control token.
          sampling: for all prompts, or a list with one for each; None is `Sampling()`.

        Returns:
          A Completion, or for a list of prompts a list of them in the same order.

        Raises:
          ValueError: a prompt is empty, too long or not of the vocabulary; there is none; or there are not as many samplings
            as prompts.
        """
        single = _is_one_prompt(prompts)
        prompts = [prompts] if single else list(prompts)
        samplings = _per_prompt(sampling, len(prompts))
        requests = [Request(self._ids(prompt), one) for prompt, one in zip(prompts, samplings, strict=True)]
        builders = {id(request): _CompletionBuilder(request, self.model.tokenizer) for request in requests}
        for piece in self.engine.run(requests):
            builders[id(piece.request)].add(piece)
        completions = [builders[id(request)].completion() for request in requests]
        return completions[0] if single else completions

    def chat(
        self,
        messages: Messages,
        sampling: Sampling | None = None,
        *,
        reasoning_effort: str = "medium",
        tools: Sequence[Mapping] | None = None,
        **options,
    ) -> Reply:
        """The assistant's next turn.

        Args:
          messages: OpenAI-style messages, see `harmony.to_conversation`; a string is one user message.
          sampling: None is `Sampling()`. Stop strings are looked for in the answer, not in the reasoning.
          reasoning_effort: "low", "medium" or "high".
          tools: functions that the model may call, in OpenAI's form.
          **options: instructions, current_date, knowledge_cutoff, model_identity of `harmony.to_conversation`.

        Raises:
          ValueError: messages, tools or options are not valid, or the conversation does not fit the context.
        """
        request, builder = self._chat(messages, sampling, reasoning_effort, tools, options)
        for piece in self.engine.run([request]):
            builder.add(piece)
        return builder.reply()

    def stream(
        self,
        messages: Messages,
        sampling: Sampling | None = None,
        *,
        reasoning_effort: str = "medium",
        tools: Sequence[Mapping] | None = None,
        **options,
    ) -> "Stream":
        """As `chat`, piece by piece: iterate for pieces with `.text` and `.channel`; then `.reply` is the whole turn.

        Everything is checked before this returns. Leaving the loop early ends the generation; `.reply` then holds what came.
        """
        request, builder = self._chat(messages, sampling, reasoning_effort, tools, options)
        return Stream(self.engine.run([request], seconds_per_piece=SECONDS_PER_PIECE), builder)

    def score(self, prompt: Prompt, continuations: Prompt | Sequence[Prompt]) -> np.ndarray | list[np.ndarray]:
        """Natural-log probability of every token of each continuation after the prompt, under the model's own distribution.

        Temperature and filters play no part.

        Args:
          prompt: text or token ids, at least one token.
          continuations: one, or a list. Text is encoded by itself, not together with the prompt.

        Returns:
          A float32 array with one entry per token, or for a list of continuations a list of them in the same order.
        """
        single = _is_one_prompt(continuations)
        prompt = self._ids(prompt)
        self.engine.check(prompt, room=0)
        rest = [self._ids(one) for one in ([continuations] if single else continuations)]
        for ids in rest:
            if len(ids) == 0:
                raise ValueError("a continuation needs at least one token; got none; pass some text or token ids.")
        scores = self.engine.score([[*prompt, *ids] for ids in rest])
        scores = [score[len(prompt) - 1 :] for score in scores]
        return scores[0] if single else scores

    def render(self, messages: Messages, **options) -> list[int]:
        """The token ids of the prompt that `chat` would make of messages. Options as for `chat`."""
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        return harmony.render(self.tokenizer, messages, **options)

    def _chat(self, messages, sampling, reasoning_effort, tools, options) -> tuple[Request, ReplyBuilder]:
        tokenizer = self.tokenizer
        sampling = _sampling(sampling)
        ids = self.render(messages, reasoning_effort=reasoning_effort, tools=tools, **options)
        turn_ends = tuple(tokenizer.special[name] for name in STOP)
        if not sampling.ignore_eos:
            ends = sampling.stop_token_ids + tuple(i for i in turn_ends if i not in sampling.stop_token_ids)
            request = Request(ids, dataclasses.replace(sampling, stop_token_ids=ends))
        else:
            request = Request(ids, sampling)
        return request, ReplyBuilder(request, tokenizer)

    def _ids(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        _check_type(prompt)
        return prompt.tolist() if isinstance(prompt, np.ndarray) else list(prompt)


class Stream(Iterator[ReplyPiece]):
    """A turn on its way; see `LLM.stream`."""

    def __init__(self, pieces: Iterator[Piece], builder: ReplyBuilder):
        self._pieces, self._builder, self._ready = pieces, builder, []

    def __next__(self) -> ReplyPiece:
        while not self._ready:
            piece = next(self._pieces)
            self._ready = self._builder.add(piece)
        return self._ready.pop(0)

    @property
    def reply(self) -> Reply:
        """What has come so far; the whole turn once the iteration has ended."""
        return self._builder.reply()


class _CompletionBuilder:
    """Adds up the pieces of a plain continuation and ends it at a stop string."""

    def __init__(self, request: Request, tokenizer: Tokenizer | None):
        if request.sampling.stop and tokenizer is None:
            raise ValueError("stop strings need a tokenizer, and this checkpoint has none; use stop_token_ids.")
        self._request, self._tokenizer = request, tokenizer
        self._tokens, self._logprobs, self._top, self._reason = [], [], [], "length"
        self._stop = TextStop(request.sampling.stop)

    def add(self, piece: Piece) -> None:
        self._reason = piece.finish_reason or self._reason
        for i, token in enumerate(piece.tokens):
            if self._stop.found:
                break
            self._tokens.append(token)
            self._logprobs.append(piece.logprobs[i])
            self._top.append(piece.top_logprobs[i])
            last = piece.finish_reason == "stop" and i == len(piece.tokens) - 1
            if self._tokenizer and not last:
                self._stop.push(self._tokenizer.decode_bytes([token]))
        if self._stop.found:
            self._request.cancelled, self._reason = True, "stop"

    def completion(self) -> Completion:
        asked = self._request.sampling.logprobs
        return Completion(
            text=self._stop.finish(),
            tokens=tuple(self._tokens),
            logprobs=None if asked is None else tuple(self._logprobs),
            top_logprobs=tuple(self._top) if asked else None,
            finish_reason="stop" if self._stop.found else self._reason,
        )


def _is_one_prompt(prompts) -> bool:
    if isinstance(prompts, str):
        return True
    _check_type(prompts)
    if isinstance(prompts, np.ndarray):
        return prompts.ndim == 1
    if len(prompts) == 0:
        raise ValueError("there must be a prompt; got an empty list; pass text, token ids, or a list of prompts.")
    return all(isinstance(i, int | np.integer) and not isinstance(i, bool) for i in prompts)


def _check_type(prompt) -> None:
    listed = prompt.ndim > 0 if isinstance(prompt, np.ndarray) else isinstance(prompt, Sequence)
    if isinstance(prompt, bytes | bytearray) or not listed:
        raise ValueError(f"a prompt must be a string or a list of token ids; got {type(prompt).__name__}; decode or list it first.")


def _sampling(sampling) -> Sampling:
    if sampling is None:
        return Sampling()
    if not isinstance(sampling, Sampling):
        raise ValueError(f"sampling must be a Sampling; got {type(sampling).__name__}; pass gptoss_jax.Sampling(temperature=0).")
    return sampling


def _per_prompt(sampling, count: int) -> list[Sampling]:
    if sampling is None or isinstance(sampling, Sampling):
        return [_sampling(sampling)] * count
    samplings = [_sampling(one) for one in sampling] if isinstance(sampling, Sequence) else [_sampling(sampling)]
    if len(samplings) != count:
        raise ValueError(f"there must be one sampling for each prompt; got {len(samplings)} for {count}; pass one Sampling for all.")
    return samplings
