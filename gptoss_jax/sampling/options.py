"""What a caller may ask of one request's sampling, checked on the host before anything is compiled or run.

Knows no arrays and no model: `state` turns these into device arrays, the engine and `llm` honour the limits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
import itertools
import numbers

from gptoss_jax.keywords import own_words
from gptoss_jax.quoting import quoted
from gptoss_jax.sampling.ids import plain

MAX_LOGPROBS = 20  # as in OpenAI's API
MAX_GIVEN = 128  # token ids whose log-probabilities are reported, as in vLLM
MAX_STOPS, MAX_STOP_LETTERS = 64, 1024  # stop strings, and characters of one
_MOST_TOKENS = 1 << 16  # that one option names; the engine takes fewer
_MAX_INTEGER = 2**63 - 1
_NONE = "pass 0 for no penalty"
REAL = {
    "temperature": (0, 1e4, "pass 0 to always take the most probable token"),
    "top_p": (0, 1, "pass 1 to keep every token"),
    "min_p": (0, 1, "pass 0 to keep every token"),
    "presence_penalty": (-2, 2, _NONE),
    "frequency_penalty": (-2, 2, _NONE),
    "repetition_penalty": (0.01, 100, "pass 1 for no penalty"),
}
"""Options that are real numbers: the least, the most, what to do about any other."""
WHOLE = {
    "top_k": (-1, _MAX_INTEGER, "pass 0 to keep every token"),
    "seed": (0, _MAX_INTEGER, "pass None for a fresh one"),
    "max_tokens": (1, _MAX_INTEGER, "pass None to go on until a stop"),
    "logprobs": (0, MAX_LOGPROBS, "pass None for none"),
    "processed_logprobs": (0, MAX_LOGPROBS, "pass None for none"),
}
"""Those that are whole numbers, likewise."""
_ELSEWHERE = dict.fromkeys(
    ("n", "messages", "tools", "tool_choice", "parallel_tool_calls", "reasoning_effort", "response_format", "priority", "time_limit"),
    "{name} is an argument of the call itself, of chat or generate",
)


class OptionError(ValueError):
    """An option is refused.

    Attributes:
        option: its name.
        says: what follows the name in the sentence.
    """

    def __init__(self, option: str, says: str):
        super().__init__(option, says)
        self.option, self.says = option, says

    def __str__(self) -> str:
        return self.option + self.says


@own_words(elsewhere=_ELSEWHERE)
@dataclass(frozen=True)
class Sampling:
    """How the tokens of one request are chosen and when it ends; the defaults are the gpt-oss model card's.

    Frozen and hashable: containers are normalised to tuples. Every value is checked here, no whole number may reach 2**63, and
    `validate_for` checks the token ids once the vocabulary is known. Order of operations and exact definitions: `draw.sample`.

    Attributes:
        temperature: 0 always takes the most probable token (the lowest id of equals), whatever the three filters below say: none of them
            ever drops that one. Else 1e-4 to 1e4.
        top_k: Draw among the k most probable tokens only; 0 keeps all, and so does -1, which becomes 0.
        top_p: Draw among the fewest most probable tokens whose probabilities reach this sum, in [0, 1]; 1 keeps all, 0 only the most
            probable one, as a temperature of 0 does.
        min_p: Drop tokens less probable than this share of the most probable one's probability, in [0, 1]; 0 keeps all.
        presence_penalty: Subtracted from the logit of every token generated so far, -2 to 2.
        frequency_penalty: Subtracted once for each time that the token was generated, -2 to 2.
        repetition_penalty: Positive logits of tokens in the prompt or generated so far are divided by this, negative ones are
            multiplied; 0.01 to 100, 1 is off.
        logit_bias: Token id -> value in [-100, 100], added to its logit. A mapping, or (id, value) pairs.
        seed: 0 to 2**63 - 1. Same seed, same prompt: same tokens, whatever else is in the batch. None takes a fresh one.
        max_tokens: Most tokens to generate; None: until a stop or until the context is full.
        stop: String or strings that end the text where they first appear: at most 64, of at most 1,024 characters.
        stop_token_ids: Token ids that end the request, besides the model's own end-of-turn tokens.
        ignore_eos: Generate on through the model's own end-of-turn tokens (for benchmarks).
        logprobs: None reports none; 0 the chosen token's natural-log probability; n also the n most probable tokens', 20 at most. They are
            those of the model's own distribution: before bias, penalties, temperature, filters and masks.
        logprob_token_ids: Token ids whose log-probabilities, those of the model's own distribution, are reported at each step, whatever is
            drawn: at most 128, each once.
        processed_logprobs: As `logprobs`, of the distribution that tokens are drawn from: after masks, bias, penalties, temperature and
            filters, over what these leave (vLLM's logprobs_mode "processed_logprobs"). Where a token is always taken, as at temperature 0,
            it has 0; one that could not be drawn, which may be given to `LLM.replay`, has -inf, and is none of the n most probable.

    Raises:
        ValueError: A value is out of its range or of the wrong type, or two options contradict each other.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | Sequence[tuple[int, float]] | None = ()
    seed: int | None = None
    max_tokens: int | None = None
    stop: str | Sequence[str] | None = ()
    stop_token_ids: Sequence[int] | None = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logprob_token_ids: Sequence[int] | None = ()
    processed_logprobs: int | None = None

    def __post_init__(self):
        def put(name, value):
            object.__setattr__(self, name, value)  # the normalised value of a frozen field

        for name, limits in REAL.items():
            put(name, _real(name, getattr(self, name), *limits))
        if 0 < self.temperature < 1e-4:
            raise OptionError(
                "temperature", f" must be 0, or from 0.0001 to 10000; got {quoted(self.temperature)}; {REAL['temperature'][2]}."
            )
        for name, limits in WHOLE.items():
            if getattr(self, name) is not None or name == "top_k":
                put(name, _integer(name, getattr(self, name), *limits))
        put("top_k", max(0, self.top_k))
        put("logit_bias", _bias(self.logit_bias))
        put("stop", _stop(self.stop))
        put("stop_token_ids", _token_ids("stop_token_ids", self.stop_token_ids))
        put("logprob_token_ids", check_given("logprob_token_ids", self.logprob_token_ids))
        if not isinstance(self.ignore_eos, bool):
            raise OptionError("ignore_eos", f" must be True or False; got {quoted(self.ignore_eos)}.")
        if self.ignore_eos and self.max_tokens is None and not self.stop and not self.stop_token_ids:
            raise OptionError(
                "ignore_eos",
                " leaves nothing to end the request before the context is full; pass max_tokens, stop or stop_token_ids.",
            )

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is taken always."""
        return self.temperature == 0 or self.top_p == 0

    @property
    def plain(self) -> bool:
        """Whether tokens are drawn from the model's own distribution, where no mask is laid upon it."""
        changes = self.top_k or self.min_p or self.presence_penalty or self.frequency_penalty or any(value for _, value in self.logit_bias)
        return self.temperature == self.top_p == self.repetition_penalty == 1 and not changes

    @property
    def ranked(self) -> bool:
        """Whether the most probable tokens of the model's own distribution are reported."""
        return bool(self.logprobs or (self.processed_logprobs and self.plain))

    def validate_for(self, vocab_size: int) -> None:
        """Refuses token ids that a vocabulary of `vocab_size` does not have.

        Raises:
            ValueError: A key of `logit_bias`, a stop token id or one of `logprob_token_ids` is not below `vocab_size`.
        """
        check_known("logit_bias", [token for token, _ in self.logit_bias], vocab_size)
        check_known("stop_token_ids", self.stop_token_ids, vocab_size)
        check_known("logprob_token_ids", self.logprob_token_ids, vocab_size)


def check_top(name: str, value: int | None) -> None:
    """Refuses a number of most probable tokens that cannot be reported; `name` is what the caller calls it.

    Raises:
        ValueError: It is neither None nor a whole number from 0 to `MAX_LOGPROBS`.
    """
    if value is not None:
        _integer(name, value, 0, MAX_LOGPROBS, hint="pass 0 for none")


def check_known(name: str, ids: Sequence[int], vocab_size: int) -> None:
    """Refuses token ids of an option, which are whole numbers from 0, that a vocabulary of `vocab_size` does not have.

    Raises:
        ValueError: One is not below it.
    """
    outside = [token for token in ids if token >= vocab_size]
    if outside:
        says = f" must name tokens of the vocabulary, 0 to {vocab_size - 1:,}; got {outside[0]:,}; take ids from this model's tokenizer."
        raise OptionError(name, says)


def check_given(name: str, value) -> tuple[int, ...]:
    """Token ids whose log-probabilities are to be reported; `name` is what the caller calls them, None stands for none.

    Raises:
        ValueError: They are no sequence of whole numbers from 0, more than `MAX_GIVEN`, or one is there twice.
    """
    ids = _token_ids(name, value, most=MAX_GIVEN)
    if len({*ids}) < len(ids):
        raise OptionError(name, f" must name each token once; got {quoted(value)}; drop what is repeated.")
    return ids


def _integer(name, value, low, high=_MAX_INTEGER, hint="", *, part="") -> int:
    value = plain(value)
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not low <= value <= high:
        bounds = f"{low} to {'2**63 - 1' if high == _MAX_INTEGER else high}"
        raise OptionError(name, f"{part} must be a whole number, {bounds}; got {quoted(value)}{'; ' + hint if hint else ''}.")
    return int(value)


def _real(name, value, low, high, hint="", *, part="") -> float:
    value = plain(value)
    real = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not real or not low <= value <= high:  # NaN compares false
        raise OptionError(name, f"{part} must be a number from {low:g} to {high:g}; got {quoted(value)}{'; ' + hint if hint else ''}.")
    return float(value)


def _bias(value) -> tuple[tuple[int, float], ...]:
    try:
        items = value.items() if isinstance(value, Mapping) else () if value is None else value
        pairs = [(token, bias) for token, bias in itertools.islice(items, _MOST_TOKENS + 1)]
    except (TypeError, ValueError):
        raise OptionError("logit_bias", f" must map token ids to numbers; got {quoted(value)}; pass a dict like {{token: -100}}.") from None
    _check_count("logit_bias", len(pairs))
    for i, (token, bias) in enumerate(pairs):
        token = _integer("logit_bias", token, 0, part="'s token id", hint="JSON's string keys need int()" if isinstance(token, str) else "")
        pairs[i] = token, _real("logit_bias", bias, -100, 100, "-100 bans a token, 100 all but forces it", part=f" of token {token}")
    if len({token for token, _ in pairs}) < len(pairs):
        raise OptionError("logit_bias", f" must name each token once; got {quoted(value)}; add up the values of a repeated token.")
    return tuple(sorted(pairs))


def _stop(value) -> tuple[str, ...]:
    strings = [value] if isinstance(value, str) else value
    if strings is None:
        return ()
    if not isinstance(strings, Sequence | set | frozenset) or not all(isinstance(text, str) for text in strings):
        raise OptionError("stop", f" must be a string or strings; got {quoted(value)}; token ids go in stop_token_ids.")
    if "" in strings:
        raise OptionError("stop", " must not hold an empty string, which would end the answer before it begins; remove it.")
    if len(strings) > MAX_STOPS:
        raise OptionError("stop", f" must be at most {MAX_STOPS} strings; got {len(strings):,}; keep those that matter.")
    if (longest := max(map(len, strings), default=0)) > MAX_STOP_LETTERS:
        raise OptionError("stop", f" must be strings of at most {MAX_STOP_LETTERS:,} characters; got one of {longest:,}; shorten it.")
    return tuple(strings) if isinstance(strings, Sequence) else tuple(sorted(strings))


def _token_ids(name, value, *, most=_MOST_TOKENS) -> tuple[int, ...]:
    if value is None:
        return ()
    if getattr(value, "ndim", 0):
        _check_count(name, len(value), most)
    value = plain(value)
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise OptionError(name, f" must be a sequence of token ids; got {quoted(value)}; pass a list like [200002].")
    ids = list(itertools.islice(value, most + 1))  # it may have no end
    _check_count(name, len(ids), most)
    return tuple(_integer(name, token, 0, part="'s token id") for token in ids)


def _check_count(name, count, most=_MOST_TOKENS) -> None:
    if count > most:
        raise OptionError(name, f" must name at most {most:,} tokens; got more; keep those that matter.")
