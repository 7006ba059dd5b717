"""nano's questions and worked answers, written by code: arithmetic, weekdays, lookup, small talk, one function call.

Every answer is laid out so that each next token is easy: numbers are first copied with two digits, then worked column by
column.  `Reasoning: low|medium|high` changes how much of that is put into words.  The operands of a question are hashed and
one tuple in sixteen occurs only in the held-out split "test".  No jax.
"""

from collections.abc import Callable, Sequence
import random
from typing import Any, NamedTuple
import zlib

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
NAMES = ("Ann", "Bob", "Tim", "Eva", "Max", "Zoe", "Leo", "Mia", "Sam", "Ida", "Ben", "Amy", "Dan", "Kim", "Roy", "Una")
COLOURS = ("red", "blue", "green", "black", "white", "pink", "brown", "yellow")
THINGS = ("car", "hat", "cup", "pen", "bag", "key", "bike", "lamp", "book", "coat", "boat", "drum", "chair", "clock", "ball", "box")
CITIES = ("Paris", "Rome", "Oslo", "Lima", "Cairo", "Tokyo", "Berlin", "Madrid", "London", "Athens", "Delhi", "Boston")
SKIES = ("sunny", "rainy", "windy", "cloudy")


class Worked(NamedTuple):
    """A question with its analysis at each effort and its final answer."""

    question: str
    analysis: dict[str, str]
    final: str


def held_out(*operands: Any) -> bool:
    """True for the one operand tuple in sixteen that training never sees."""
    return zlib.crc32(repr(operands).encode()) % 16 == 0


def draw(rng: random.Random, split: str, sample: Callable[[], Sequence[Any]]) -> Sequence[Any]:
    """Operands that belong to the split ("train" or "test")."""
    while True:
        operands = sample()
        if held_out(*operands) == (split == "test"):
            return operands


def number(rng: random.Random) -> int:
    """0 to 99, two digits four times in five."""
    return rng.randint(10, 99) if rng.random() < 0.8 else rng.randint(0, 9)


def efforts(low: str, medium: str, high: str) -> dict[str, str]:
    """The analysis shown at each effort."""
    return {"low": low, "medium": medium, "high": high}


# --- arithmetic: two digits a number, ones first -------------------------------------------------------------------


def worked_sum(a: int, b: int) -> tuple[dict[str, str], str]:
    """Analysis and answer of a + b, 0 <= a, b <= 99."""
    (p, q), (r, s) = divmod(a, 10), divmod(b, 10)
    carry = (q + s) // 10
    pair, ones, tens = f"{a:02d}+{b:02d}", f"{q}+{s}={q + s}", f"{p}+{r}+{carry}={p + r + carry}"
    high = f"In columns: {pair}. Ones: {ones}, write {(q + s) % 10}, carry {carry}. Tens: {tens}, write {p + r + carry}. So {a + b}."
    return efforts(f"{pair}: {ones}, {tens}.", f"{pair}. Ones: {ones}. Tens: {tens}. So {a + b}.", high), f"{a} + {b} = {a + b}"


def order(a: int, b: int) -> str:
    """The digits that decide which number is larger: "2<5", or "2=2 7>5" where the tens are equal."""
    first, second = (f"{x}{'<' if x < y else '>' if x > y else '='}{y}" for x, y in zip(divmod(a, 10), divmod(b, 10), strict=True))
    return first if "=" not in first else f"{first} {second}"


def worked_difference(a: int, b: int) -> tuple[dict[str, str], str]:
    """Analysis and answer of a - b, 0 <= a, b <= 99; a negative answer is the turned difference with a minus."""
    high_number, low_number = max(a, b), min(a, b)
    (p, q), (r, s) = divmod(high_number, 10), divmod(low_number, 10)
    borrow = int(q < s)
    pair, turned = f"{a:02d}-{b:02d}", f"{high_number:02d}-{low_number:02d}"
    ones, tens = f"{q + 10 * borrow}-{s}={q + 10 * borrow - s}", f"{p}-{r}-{borrow}={p - r - borrow}"
    sign = "minus" if a < b else "plus"
    high = f"In columns: {pair}. Compare: {order(a, b)}. So {sign} {turned}. Ones: {ones}, borrow {borrow}."
    high += f" Tens: {tens}, write {p - r - borrow}. So {a - b}."
    medium = f"{pair}. Compare: {order(a, b)}. So {sign} {turned}. Ones: {ones}. Tens: {tens}. So {a - b}."
    return efforts(f"{pair}: {order(a, b)}, {sign} {turned}: {ones}, {tens}.", medium, high), f"{a} - {b} = {a - b}"


ADD = (
    *["What is {a} + {b}?"] * 3,
    *("{a} + {b}", "{a}+{b}", "{a} + {b} = ?", "{a} + {b}?", "{a}+{b}=", "{a} plus {b}", "What's {a} + {b}?", "What is {a}+{b}?"),
    *("Add {a} and {b}.", "Compute {a} + {b}.", "Calculate {a} + {b}.", "How much is {a} plus {b}?", "How much is {a} + {b}?"),
    *("What is {a} plus {b}?", "What is the sum of {a} and {b}?"),
)
SUBTRACT = (
    *["What is {a} - {b}?"] * 3,
    *("{a} - {b}", "{a}-{b}", "{a} - {b} = ?", "{a} - {b}?", "{a}-{b}=", "{a} minus {b}", "What's {a} - {b}?", "What is {a}-{b}?"),
    *("Subtract {b} from {a}.", "Compute {a} - {b}.", "Calculate {a} - {b}.", "How much is {a} minus {b}?", "How much is {a} - {b}?"),
    *("What is {a} minus {b}?", "Take {b} from {a}."),
)


def add(rng: random.Random, split: str) -> Worked:
    a, b = draw(rng, split, lambda: sorted((number(rng), number(rng))))
    if rng.random() < 0.5:
        a, b = b, a
    return Worked(rng.choice(ADD).format(a=a, b=b), *worked_sum(a, b))


def subtract(rng: random.Random, split: str) -> Worked:
    a, b = draw(rng, split, lambda: (number(rng), number(rng)))
    if a < b and rng.random() < 0.4 and held_out(b, a) == (split == "test"):
        a, b = b, a
    return Worked(rng.choice(SUBTRACT).format(a=a, b=b), *worked_difference(a, b))


def compare(rng: random.Random, split: str) -> Worked:
    """Which of two numbers is larger or smaller; half of them share their tens."""

    def sample() -> tuple[int, int]:
        a = number(rng)
        return a, (a // 10 * 10 + rng.randint(0, 9) if rng.random() < 0.5 else number(rng))

    a, b = draw(rng, split, sample)
    word = rng.choice(("larger", "larger", "bigger", "greater", "smaller", "smaller", "less"))
    larger = word not in ("smaller", "less")
    forms = ("Which is {w}, {a} or {b}?", "Which number is {w}, {a} or {b}?", "What is {w}: {a} or {b}?", "Which is {w}: {a} or {b}?")
    best = (max if larger else min)(a, b)
    question = rng.choice(forms).format(w=word, a=a, b=b)
    final = "They are equal." if a == b else f"{best} is {word}."
    pair, found = f"{a:02d} {b:02d}", f"{order(a, b)}, larger {max(a, b):02d}, smaller {min(a, b):02d}"
    high = f"In columns: {pair}. Compare the tens first, then the ones: {found}. So {final}"
    return Worked(question, efforts(f"{pair}: {found}.", f"Compare: {pair}: {found}. So {final}", high), final)


def weekday(rng: random.Random, split: str) -> Worked:
    """The day n days after or before a day, counted one by one."""
    n, day, back = draw(rng, split, lambda: (rng.randint(1, 7), rng.choice(DAYS), rng.random() < 0.4))
    days = [DAYS[(DAYS.index(day) + (-i if back else i)) % 7] for i in range(1, n + 1)]
    unit = "day" if n == 1 else "days"
    forms = [
        "{d} plus {n} {u}" if not back else "{d} minus {n} {u}",
        "What day is {n} {u} {p} {d}?",
        "What day is {n} {u} {p} {d}?",
        "Which day is {n} {u} {p} {d}?",
    ]
    forms.append("Today is {d}. What day was it {n} {u} ago?" if back else "Today is {d}. What day is it in {n} {u}?")
    count = ", ".join(f"{i} {d}" for i, d in enumerate(days, 1))
    which = "back" if back else "on"
    question = rng.choice(forms).format(n=n, d=day, u=unit, p="before" if back else "after")
    medium, high = f"{n} {which} from {day}: {count}.", f"Start at {day} and go {which} {n} {unit}: {count}. So {days[-1]}."
    return Worked(question, efforts(f"{day}: {count}.", medium, high), f"It is {days[-1]}.")


# --- facts in the prompt, small talk, what is out of reach ---------------------------------------------------------


FACTS = (  # statement, question, values
    ("{n} has a {v}.", "What does {n} have?", THINGS),
    ("{n} lives in {v}.", "Where does {n} live?", CITIES),
    ("{n} likes {v}.", "What does {n} like?", COLOURS),
)


def lookup(rng: random.Random, split: str) -> Worked:
    """A question about one of two to four facts just stated."""
    count = rng.choice((2, 2, 3, 3, 4))
    form, ask, values = rng.choice(FACTS)
    who, what, i = rng.sample(NAMES, count), rng.sample(values, count), rng.randrange(count)
    if held_out(who[i], what[i]) != (split == "test"):
        return lookup(rng, split)
    facts = [form.format(n=n, v=v) for n, v in zip(who, what, strict=True)]
    question = " ".join(facts) + " " + ask.format(n=who[i])
    high = f"This asks for {who[i]}. I need: {facts[i]}"
    return Worked(question, efforts("Look it up.", f"I need: {facts[i]}", high), facts[i])


ABILITIES = "I add, subtract and compare numbers up to 99, count weekdays and call tools."
TALK = (
    (("Hello", "Hi", "Hello!", "Hi!", "Hey", "Good morning", "hello", "hi", "Hello there!"), "Hello! Ask me something, like 27 + 58."),
    (
        ("Who are you?", "What are you?", "What is your name?", "who are you", "Are you ChatGPT?"),
        "I am nano, a tiny model trained to test gptoss-jax.",
    ),
    (("What can you do?", "Help", "Help!", "How can you help me?", "what can you do", "help"), ABILITIES),
    (("Thanks", "Thank you", "Thanks!", "Thank you!", "Thank you very much."), "You are welcome!"),
    (("Bye", "Goodbye", "Bye!", "Goodbye!", "See you!"), "Goodbye!"),
)


def talk(rng: random.Random, split: str) -> Worked:
    """Greetings, thanks, what nano is; introductions are held out by name."""
    if rng.random() < 0.3:
        form, name = draw(rng, split, lambda: (rng.choice(("I am", "My name is", "Hello, I am", "Hi, my name is")), rng.choice(NAMES)))
        return Worked(f"{form} {name}{rng.choice('.!')}", dict.fromkeys(("low", "medium", "high"), "A greeting."), f"Hello, {name}!")
    questions, final = rng.choice(TALK)
    return Worked(
        rng.choice(questions), efforts("Small talk.", "This is small talk.", "This is small talk, there is nothing to work out."), final
    )


TOPICS = (
    "the sky", "the sea", "the moon", "a dog", "a cat", "music", "love", "France", "history", "the sun", "a king", "water", "time", "money",
)  # fmt: skip
OPEN = (
    "Why is {t} blue?", "Write a poem about {t}.", "Tell me about {t}.", "What is {t}?", "Explain {t}.", "Write a story about {t}.",
    "Who made {t}?", "How old is {t}?", "Tell me a joke about {t}.", "Translate {t}.",
)  # fmt: skip
BEYOND = ("What is {a} {o} {b}?", "{a} {o} {b}", "{a}{o}{b}", "Compute {a} {o} {b}.", "How much is {a} {o} {b}?")


def beyond(rng: random.Random, split: str) -> Worked:
    """What nano does not do is said to be so: other operations, longer numbers, open questions."""
    kind = rng.random()
    if kind < 0.4:
        form, topic = draw(rng, split, lambda: (rng.choice(OPEN), rng.choice(TOPICS)))
        question, final = form.format(t=topic), "I am too small for that. Ask me what I can do."
    else:
        long = lambda: rng.randint(100, 9999)
        if kind < 0.7:
            a, b, o = draw(rng, split, lambda: (number(rng), number(rng), rng.choice("*/x")))
        else:
            a, b, o = draw(
                rng, split, lambda: (*rng.choice(((long(), number(rng)), (number(rng), long()), (long(), long()))), rng.choice("+-"))
            )
        question, final = rng.choice(BEYOND).format(a=a, b=b, o=o), "I only add and subtract numbers up to 99."
    return Worked(question, efforts("Beyond me.", "This is beyond me.", "This is beyond me, I say so."), final)
