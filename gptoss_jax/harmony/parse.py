"""Whatever a model wrote to messages, token by token or at once. Never raises, never loses a token.

    [header]  <|channel|>final  <|message|>  [content]  Hello  <|end|>  [between]  <|start|>  [header]  ...

A well-formed stream walks through these three states. Every other token is taken for what it most likely was meant to be, and
noted in `problems`; tokens that cannot belong to a message are kept as spans of junk.
"""

from collections.abc import Iterable

from gptoss_jax.harmony.conversation import CHANNELS, ROLES
from gptoss_jax.harmony.header import Header, answers, called, read_header
from gptoss_jax.harmony.parsed import Delta, Message, Parsed
from gptoss_jax.quoting import quoted
from gptoss_jax.tokenizer import Tokenizer, token_id, token_ids

_ENDS = ("<|end|>", "<|return|>", "<|call|>", "<|endoftext|>")
_INVALID = b"\xff"  # no UTF-8 holds this byte


def parse(tokenizer: Tokenizer, tokens: Iterable[int], *, role: str | None = "assistant", channel: str | None = None) -> Parsed:
    """All that can be read in tokens. Any integers will do; whatever they are it never raises, and never loses one.

    Args:
        tokenizer: the vocabulary of the tokens.
        tokens: an answer, with the control token that ended it.
        role: of the first message, whose `<|start|>role` the prompt ended with; None for a stream that begins with `<|start|>`.
        channel: of the first message, if the prompt ended in the middle of its text: what the tokens add to it is `messages[0]`, also
            where that is nothing.

    Raises:
        ValueError: tokens are not integers, or there is no such role or channel.
    """
    parser = StreamParser(tokenizer, role=role, channel=channel)
    for token in token_ids(tokens):
        parser.push(token)
    return parser.result()


class StreamParser:
    """`parse`, one token at a time: push tokens, show the deltas, take the result.

    A character whose bytes come in several tokens is held back until it is whole. Args as `parse`.
    """

    def __init__(self, tokenizer: Tokenizer, *, role: str | None = "assistant", channel: str | None = None):
        for name, one, known in (("role", role, ROLES), ("channel", channel, CHANNELS)):
            if one is not None and (not isinstance(one, str) or one not in known):
                raise ValueError(f"{name} must be None or one of {', '.join(known)}; got {quoted(one, 60)}")
        self._tokenizer = tokenizer
        self._tokens: list[int] = []
        self._messages: list[Message] = []
        self._junk: list[tuple[int, int]] = []
        self._problems: dict[str, int] = {}  # what, and at which token first
        self._missing = ""
        self._closed = False
        self._begin = 0  # of the segment that is being read
        self._state = "content" if channel else "header" if role else "between"
        self._role = role  # of the message whose header is being read, if known before the header says it
        self._pieces: list[tuple[str, bytearray]] = [("", bytearray())]  # of the header: control token and the bytes after it
        self._loose = bytearray()  # text between messages: perhaps a header whose <|start|> is missing
        self._header = Header(role or "assistant", channel=channel)  # of the message whose content is being read
        self._text: list[str] = []
        self._held = b""  # bytes of a character that is not whole yet
        self._begun = False  # a delta of the message has been given
        self._content = self._told = self._whole = 0  # where its content begins; up to where deltas have its tokens; their text is whole

    @property
    def state(self) -> str:
        """Where the stream is: in a message's "header" or "content", or "between" messages."""
        return self._state

    @property
    def header(self) -> Header:
        """Of the message whose content is being read, or was read last."""
        return self._header

    def push(self, token: int) -> list[Delta]:
        """Takes the next token; returns the text that it completes and the messages that it begins and ends, usually one delta or none.

        Raises:
            ValueError: the stream has been finished, or the token is no integer.
        """
        if self._closed:
            raise ValueError("this stream is finished; make a new StreamParser for the next one")
        token = token_id(token)
        self._tokens.append(token)
        name, data = self._tokenizer.control_name(token), self._tokenizer.token_bytes(token)
        if name is None and data is None:
            self._problem(f"{quoted(token)} is not in the vocabulary")
            data = _INVALID
        return {"between": self._between, "header": self._in_header, "content": self._in_content}[self._state](name, data)

    def finish(self) -> list[Delta]:
        """Ends the stream; returns the text that was still held back. A second call does nothing."""
        if self._closed:
            return []
        self._closed = True
        if self._state == "between" and self._loose.strip():
            self._open_loose()
        cut, end = self._state, len(self._tokens)
        deltas = self._end_content(None, end) if cut == "content" else []
        deltas += self._end_header(None, end, cut=True) if cut == "header" else []
        self._end_junk(end)
        last = self._messages[-1] if self._messages else None
        if cut != "between":
            self._missing = f"the stream was cut off in a message's {cut}"
        elif last is None:
            self._missing = "the stream holds no message"
        elif last.role == "assistant" and last.end == "<|end|>" and not last.tool_call and not last.answers:
            self._missing = f"no answer and no call follow the {last.channel}"
        return deltas

    def result(self) -> Parsed:
        """All that could be read; ends the stream."""
        self.finish()
        problems = tuple(f"token {at}: {what}" for what, at in self._problems.items())
        return Parsed(tuple(self._tokens), tuple(self._messages), tuple(self._junk), problems, self._missing)

    # The states. Each takes the control token's name, or the bytes of a token of text.

    def _between(self, name: str | None, data: bytes | None) -> list[Delta]:
        here = len(self._tokens) - 1
        if name == "<|start|>":
            self._open_header(None, here)
        elif name is None:
            self._problem("text between messages")
            if not self._loose:
                self._end_junk(here)
            self._loose.extend(data)
        elif name in ("<|channel|>", "<|message|>"):
            self._problem("<|start|> is missing")
            self._open_loose() if self._loose.strip() else self._open_header("assistant", here)
            return self._in_header(name, data)
        elif name in _ENDS and self._loose.strip():
            self._open_loose()
            return self._in_header(name, data)
        else:
            self._problem(f"{name} after the end of a message")
            self._loose.clear()
        return []

    def _in_header(self, name: str | None, data: bytes | None) -> list[Delta]:
        if name is None:
            self._pieces[-1][1].extend(data)
        elif name in ("<|channel|>", "<|constrain|>"):
            self._pieces.append((name, bytearray()))
        elif name == "<|message|>":
            self._header = self._read_header(name)
            self._state = "content"
            self._content = self._told = self._whole = len(self._tokens)
            return [self._delta("")]
        elif name == "<|start|>":
            self._problem("<|start|> inside a header")
            deltas = self._end_header(None, len(self._tokens) - 1)
            self._open_header(None, len(self._tokens) - 1)
            return deltas
        elif name in _ENDS:
            self._problem("<|message|> is missing")
            return self._end_header(name, len(self._tokens))
        else:
            self._problem(f"{name} inside a header")
        return []

    def _in_content(self, name: str | None, data: bytes | None) -> list[Delta]:
        if name is None:
            text = self._decode(data)
            if len(self._held) <= len(data):  # an unfinished character, if there is one, begins in this token
                self._whole = len(self._tokens) - bool(self._held)
            return [self._delta(text)] if text else []
        if name in _ENDS:
            if name == "<|endoftext|>":
                self._problem("<|endoftext|> ends a message")
            return self._end_content(name, len(self._tokens))
        self._problem(f"{name} inside a message")
        if name not in ("<|start|>", "<|channel|>"):
            return []
        here = len(self._tokens) - 1
        deltas = self._end_content(None, here)
        self._open_header(self._header.role if name == "<|channel|>" else None, here)
        return deltas + (self._in_header(name, data) if name == "<|channel|>" else [])

    # Their transitions. `end` is one past the last token of what ends.

    def _open_header(self, role: str | None, begin: int) -> None:
        self._end_junk(begin)
        self._state, self._role, self._pieces, self._loose = "header", role, [("", bytearray())], bytearray()

    def _open_loose(self) -> None:
        """The text between messages begins a message."""
        loose = self._loose
        self._open_header(None, self._begin)
        self._pieces = [("", loose)]

    def _end_junk(self, end: int) -> None:
        if self._begin < end:
            self._junk.append((self._begin, end))
        self._begin = end

    def _end_header(self, name: str | None, end: int, *, cut: bool = False) -> list[Delta]:
        """Ends a header that no content followed: a message if it says anything, else junk.

        One that is cut off says nothing yet but its text: no content has begun, and what came of it need not be all.
        """
        self._header = self._read_header(name)
        self._state = "between"
        if not (self._header.text.strip() or not cut and (self._header.channel or self._header.recipient)):
            self._end_junk(end)
            return []
        self._content = self._told = self._spelling(self._header.text, end - (name is not None))
        return self._end_content(name, end, self._header.text)

    def _end_content(self, name: str | None, end: int, text: str = "") -> list[Delta]:
        """Ends the message, with the last of its text."""
        if self._held:
            self._problem("invalid UTF-8")
            text = "\N{REPLACEMENT CHARACTER}"
        self._whole = end - (name is not None)
        delta = self._delta(text, ends=True)
        h = self._header
        self._judge(name)
        what = {"name": h.name, "channel": h.channel, "recipient": h.recipient, "content_type": h.content_type, "end": name}
        content = (self._content, self._whole)
        self._messages.append(Message(h.role, "".join(self._text), (self._begin, end), **what, content=content))
        self._begin, self._text, self._held, self._begun, self._state = end, [], b"", False, "between"
        return [delta]

    def _spelling(self, text: str, end: int) -> int:
        """Where the last of the segment's tokens begin, up to `end`, that spell a text; where they all begin, if they do not."""
        tokens = self._tokens[self._begin : end]
        data = [b"" if self._tokenizer.control_name(token) else self._tokenizer.token_bytes(token) or _INVALID for token in tokens]
        left = len(text.encode())
        if not b"".join(data).endswith(text.encode()):
            return self._begin
        while left > 0:
            left -= len(data.pop())
        return self._begin + len(data)

    def _read_header(self, end: str | None) -> Header:
        pieces = [(name, data.decode(errors="replace")) for name, data in self._pieces]
        header = read_header(pieces, self._role, end=end)
        invalid = any(text.encode() != data for (_, text), (_, data) in zip(pieces, self._pieces, strict=True))
        for problem in header.problems + ["invalid UTF-8"] * invalid:
            self._problem(problem)
        return header

    def _judge(self, end: str | None) -> None:
        """Notes an end that does not go with the assistant's message that it ends."""
        h = self._header
        call = called(h.role, h.recipient)
        if h.role != "assistant" or end is None:
            return
        if end == "<|call|>" and call is None:
            self._problem("<|call|> ends a message that names no tool")
        elif end in ("<|end|>", "<|return|>") and call is not None:
            self._problem(f"{end} ends a call")
        elif end == "<|return|>" and not answers(h.role, h.channel, h.recipient):
            self._problem(f"<|return|> ends the {h.channel}, which is no answer")

    def _delta(self, text: str, *, ends: bool = False) -> Delta:
        """The next of the message that is being read: text, and the tokens that are whole with it."""
        self._text.append(text)
        h, begins, told = self._header, not self._begun, self._told
        self._begun, self._told = True, self._whole
        return Delta(len(self._messages), text, h.role, h.channel, h.recipient, begins, ends, (told, self._whole))

    def _decode(self, data: bytes) -> str:
        """The characters that data completes. Replaces what can never become valid, as bytes.decode does, and notes it."""
        self._held += data
        out = ""
        while self._held:
            try:
                whole, self._held = self._held.decode(), b""
                return out + whole
            except UnicodeDecodeError as error:
                out += self._held[: error.start].decode()
                if error.reason == "unexpected end of data":
                    self._held = self._held[error.start :]
                    break
                self._problem("invalid UTF-8")
                out += "\N{REPLACEMENT CHARACTER}"
                self._held = self._held[error.end :]
        return out

    def _problem(self, what: str) -> None:
        if self._closed:
            return  # half a word or character at the end of the stream is cut off, not malformed
        self._problems.setdefault(what, max(len(self._tokens) - 1, 0))
