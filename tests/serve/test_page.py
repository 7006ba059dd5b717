"""The chat page in a real browser, against a server that says what it was told to."""

from collections.abc import Iterator
import re
import shutil

from chat_visit import Visit
import pytest
from scripted_chat import DONE, KEY, Scripted, call, delta, serving, usage
from server_process import served

pytestmark = pytest.mark.thorough
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BEGIN = delta(role="assistant", content="")
END = [delta("stop"), usage(24, 41), DONE]


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed; Debian's package is called chromium.")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def scripted() -> Scripted:
    return Scripted()


@pytest.fixture
def address(scripted) -> Iterator[str]:
    with serving(scripted.app) as address:
        yield address


@pytest.fixture
def visit(browser, address) -> Iterator[Visit]:
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    context.set_default_timeout(60_000)
    visit = Visit(context.new_page(), address)
    yield visit
    assert not visit.broken
    assert {url.split("/")[2] for url in visit.asked} == {address.split("/")[2]}, "the page asked somebody else"
    context.close()


def test_an_answer_is_shown_as_it_comes(scripted, visit):
    """Reasoning is folded and goes on while it is; what came is there before the end."""
    scripted.script["hi"] = [BEGIN, delta(reasoning="first "), None, delta(reasoning="second"), delta(content="Grüße 🙂"), *END]
    visit.send("hi")
    visit.page.get_by_text("Reasoning", exact=True).click()
    visit.page.get_by_text("first").wait_for()
    scripted.go.set()
    text = visit.ended()
    assert "first second" in text and "Grüße 🙂" in text and "Reasoned for" in text
    assert re.search(r"24 tokens in · 41 out · \d+ tok/s · [\d.]+ s", text)
    assert visit.page.title() == "scripted/one"
    [body] = scripted.seen
    assert body["stream"] and body["stream_options"] == {"include_usage": True} and body["reasoning_effort"] == "medium"
    assert body["model"] == "scripted/one" and "temperature" not in body and "tools" not in body


def test_reasoning_is_folded(scripted, visit):
    scripted.script["hi"] = [BEGIN, delta(reasoning_content="secret"), delta(content="done"), *END]
    assert "secret" not in visit.ask("hi")
    visit.page.locator("summary").click()
    assert "secret" in visit.answer.inner_text()


def test_an_answer_is_text_and_never_html(scripted, visit):
    said = "<img src=x onerror=alert(1)><script>document.title = 'taken'</script> &amp; **so**"
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "<b>f</b>", "arguments": '{"<i>": "</pre><script>"}'}}
    scripted.script[said] = [BEGIN, delta(reasoning=said), delta(content=said), delta(tool_calls=[call]), delta("tool_calls"), DONE]
    text = visit.ask(said)
    assert said in text and "<b>f</b>" in text and "</pre><script>" in text
    assert visit.page.locator("img, #log script, #log b, #log i").count() == 0
    assert visit.page.title() == "scripted/one"


@pytest.mark.parametrize("step", [1, 7, 1000])
def test_code_is_set_apart_however_it_is_cut(scripted, visit, step):
    said = "Look:\n\n```python\nif a < b:\n    print('``` no end')\n```\n\nThat is it.\n```\nlast"
    pieces = [delta(content=said[i : i + step]) for i in range(0, len(said), step)]
    scripted.script["code"] = [BEGIN, *pieces, *END]
    visit.ask("code")
    assert visit.answer.locator("pre").all_inner_texts() == ["if a < b:\n    print('``` no end')", "last"]
    assert visit.answer.locator(".body p").all_inner_texts() == ["Look:", "That is it."]


def test_a_conversation_goes_on(scripted, visit):
    """With instructions, effort, temperature and a limit; reasoning goes back beside the answer."""
    scripted.script |= {"one": [BEGIN, delta(reasoning="r"), delta(content="1"), *END], "two": [BEGIN, delta(content="2"), *END]}
    visit.settings()
    visit.page.get_by_label("Instructions").fill("Be short.")
    visit.page.get_by_text("high", exact=True).click()
    visit.page.get_by_label("Temperature").fill("0.5")
    visit.page.get_by_label("Most tokens").fill("100")
    visit.ask("one")
    visit.ask("two")
    body = scripted.seen[-1]
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": "1", "reasoning": "r"},
        {"role": "user", "content": "two"},
    ]
    assert (body["temperature"], body["max_completion_tokens"], body["reasoning_effort"]) == (0.5, 100, "high")
    visit.page.reload()
    visit.settings()
    assert visit.page.get_by_label("Instructions").input_value() == "Be short."
    visit.ask("one")
    assert scripted.seen[-1]["reasoning_effort"] == "high"


@pytest.mark.parametrize("way", ["Stop", "Escape"])
def test_stopping_leaves_the_stream(scripted, visit, way):
    """The server sees it, what came stays, and the conversation goes on."""
    scripted.script |= {"long": [BEGIN, delta(content="half an"), None, *END], "then": [BEGIN, delta(content="yes"), *END]}
    visit.send("long")
    visit.page.get_by_text("half an").wait_for()
    visit.press("Stop") if way == "Stop" else visit.page.keyboard.press("Escape")
    text = visit.ended()
    assert "half an" in text and "stopped" in text
    visit.ask("then")
    assert scripted.left == 1
    assert [one["content"] for one in scripted.seen[-1]["messages"]] == ["long", "half an", "then"]


def test_the_end_stays_in_sight_until_the_user_scrolls_up(scripted, visit):
    lines = [delta(content=f"line {i}\n") for i in range(2_000)]
    scripted.script["long"] = [BEGIN, *lines[:1_000], None, *lines[1_000:], *END]
    from_end = "(({scrollHeight, scrollTop, clientHeight}) => scrollHeight - scrollTop - clientHeight)(document.querySelector('#log'))"
    visit.send("long")
    visit.page.get_by_text("line 999").wait_for()
    visit.page.locator("#log").hover()
    visit.page.evaluate("new Promise(requestAnimationFrame)")
    assert visit.page.evaluate(from_end) < 60
    visit.page.mouse.wheel(0, -4_000)
    while visit.page.evaluate(from_end) < 2_000:
        visit.page.evaluate("new Promise(requestAnimationFrame)")
    scripted.go.set()
    visit.ended()
    assert visit.page.evaluate(from_end) > 10_000
    scripted.script["more"] = [BEGIN, *lines, *END]
    visit.ask("more")
    visit.page.evaluate("new Promise(requestAnimationFrame)")
    assert visit.page.evaluate(from_end) < 60


def test_calls_are_shown_and_answered(scripted, visit):
    calls = [*call(0, "get_weather", '{"city": ', '"Paris"}'), *call(1, "now")]
    scripted.script |= {
        "What is the weather?": [BEGIN, delta(reasoning="ask"), *calls, delta("tool_calls"), *END[1:]],
        "12:00": [BEGIN, delta(content="sunny at noon"), *END],
    }
    visit.settings()
    visit.press("An example")
    visit.ask("What is the weather?")
    assert '{\n  "city": "Paris"\n}' in visit.answer.inner_text()
    visit.send("never mind")
    visit.page.get_by_text("The model waits for the tool's result").wait_for()
    visit.page.get_by_label("Result of get_weather").fill("sunny, 21")
    visit.page.keyboard.press("Enter")  # to the next field, which is empty
    visit.page.keyboard.type("12:00")
    visit.page.keyboard.press("Enter")
    visit.page.get_by_text("sunny at noon").wait_for()
    assert len(scripted.seen) == 2
    asked, told = scripted.seen
    assert asked["tool_choice"] == "auto"
    [tool] = asked["tools"]
    assert tool["type"] == "function" and tool["function"]["name"] == "get_weather"
    functions = [("get_weather", '{"city": "Paris"}'), ("now", "")]
    made = [{"id": f"call_{i}", "type": "function", "function": {"name": n, "arguments": a}} for i, (n, a) in enumerate(functions)]
    assert told["messages"][1:] == [
        {"role": "assistant", "content": None, "reasoning": "ask", "tool_calls": made},
        {"role": "tool", "tool_call_id": "call_0", "content": "sunny, 21"},
        {"role": "tool", "tool_call_id": "call_1", "content": "12:00"},
    ]


@pytest.mark.parametrize("tools", ["{", "3", '[{"name": "f"}, null]'])
def test_tools_that_are_none_are_told_before_anything_is_sent(scripted, visit, tools):
    visit.settings()
    visit.page.get_by_label("Tools, as JSON").fill(tools)
    visit.send("hi")
    visit.page.locator("#notice").get_by_text("Tools").wait_for()
    assert not scripted.seen and visit.page.get_by_label("Message", exact=True).input_value() == "hi"


def test_retry_and_edit_ask_again(scripted, visit):
    scripted.script |= {"one": [BEGIN, delta(content="1"), *END], "two": [BEGIN, delta(content="2"), *END]}
    visit.ask("one")
    visit.press("Retry")
    visit.ended()
    assert scripted.seen[0] == scripted.seen[1]
    visit.press("Edit")
    visit.page.get_by_label("Your message").fill("two")
    visit.page.keyboard.press("Enter")
    assert "2" in visit.ended()
    assert scripted.seen[-1]["messages"] == [{"role": "user", "content": "two"}]
    visit.press("New chat")
    visit.ask("one")
    assert scripted.seen[-1]["messages"] == [{"role": "user", "content": "one"}]


def test_what_fails_says_why(scripted, visit):
    """In the server's words; what could not be asked is not asked again with the next message."""
    scripted.script |= {
        "refused": (400, "messages[0] is <b>bad</b>"),
        "waits": (429, "too many wait"),
        "breaks": [BEGIN, delta(content="so f"), {"error": {"message": "the engine failed"}}],
        "cut": [BEGIN, delta(content="so f")],
        "odd": ["data: {{{\n\n"],
        "odder": [None, [], 3, {"choices": [None]}, {"choices": [{"delta": None}]}, *END],
        "fine": [": comment\r\n\r\ndata:", ' {"choices": [{"delta":\r\ndata: {"content": "well"}}]}\r\n\r', "\n", *END],
    }
    assert "400: messages[0] is <b>bad</b>" in visit.ask("refused")
    assert "429: too many wait" in visit.ask("waits")
    assert "The server's answer is no stream of a chat" in visit.ask("odd")
    scripted.go.set()
    assert "no answer" in visit.ask("odder")
    assert "well" in visit.ask("fine")
    assert [one["content"] for one in scripted.seen[-1]["messages"]] == ["odder", "fine"]
    assert re.search("so f\\s+the engine failed", visit.ask("breaks"))
    assert "The connection ended before the answer did." in visit.ask("cut")


def test_a_key_is_asked_for_where_the_server_wants_one(scripted, browser, address):
    scripted.keyed = True
    scripted.script["hi"] = [BEGIN, delta(content="let in"), *END]
    context = browser.new_context(viewport={"width": 1200, "height": 800})
    visit = Visit(context.new_page(), address)
    visit.page.get_by_text("401: an API key is needed.").wait_for()
    visit.page.get_by_label("API key").fill("wrong")
    assert "401: an API key is needed." in visit.ask("hi")
    visit.page.get_by_label("API key").fill(KEY)
    visit.page.keyboard.press("Enter")
    visit.page.get_by_role("heading", name="scripted/one").wait_for()
    visit.press("Retry")
    assert "let in" in visit.ended()
    visit.page.reload()
    assert "let in" in visit.ask("hi")
    assert not visit.broken
    context.close()


@pytest.mark.parametrize("width, height", [(320, 568), (390, 844), (1280, 800)])
def test_nothing_sticks_out(scripted, browser, address, width, height):
    scripted.script["w" * 300] = [
        BEGIN,
        delta(reasoning="r" * 300),
        *call(0, "f" * 60, '{"a": "' + "b" * 300 + '"}'),
        delta("tool_calls"),
        DONE,
    ]
    context = browser.new_context(viewport={"width": width, "height": height})
    visit = Visit(context.new_page(), address)
    visit.ask("w" * 300)
    for _ in range(2):
        assert visit.page.evaluate(
            "document.documentElement.scrollWidth <= innerWidth && document.querySelector('#log').scrollWidth <= innerWidth"
        )
        visit.settings()
    context.close()


def test_nano_answers(browser):
    """The real server: an answer, a tool's round, what it refuses, and a request that is stopped leaves nothing behind."""
    with served() as server:
        visit = Visit(browser.new_page(viewport={"width": 1200, "height": 800}), server.url)
        visit.page.set_default_timeout(120_000)
        visit.page.get_by_role("heading", name="nano").wait_for()
        assert "40 + 45 = 85" in visit.ask("What is 40 + 45?")
        assert "85 + 4 = 89" in visit.ask("Now add 4.")
        visit.press("New chat")
        visit.settings()
        visit.press("An example")
        assert '"city": "Paris"' in visit.ask("What is the weather in Paris?")
        visit.page.keyboard.type("sunny, 21")
        visit.page.keyboard.press("Enter")
        visit.page.get_by_role("article", name="Answer").nth(1).wait_for()
        assert "sunny" in visit.ended()
        visit.page.get_by_label("Tools, as JSON").fill('[{"name": "a b"}]')
        assert re.search(r"400: .*name.*a b", visit.ask("hi"))
        visit.page.get_by_label("Tools, as JSON").fill("")
        visit.page.get_by_label("Temperature").fill("10000")
        visit.send("Say what you like.")
        visit.page.get_by_role("article", name="Answer").last.get_by_text(re.compile(".")).first.wait_for()
        visit.press("Stop")
        assert "stopped" in visit.ended()
        assert server.idle() and not visit.broken
        visit.page.close()
