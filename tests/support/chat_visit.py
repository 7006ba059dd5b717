"""What a user does on the chat page, in a browser that Playwright drives."""


class Visit:
    """A page that is open, and what a user does there.

    Attributes:
      asked: addresses that the page asked for anything.
      broken: what the browser complained of: errors of the script, what the policy forbade.
    """

    def __init__(self, page, address: str):
        self.page, self.asked, self.broken = page, [], []
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("pageerror", lambda error: self.broken.append(str(error)))
        page.on("console", lambda said: self.broken.append(said.text) if "Failed to load resource" not in said.text else None)
        page.goto(address)

    def send(self, text: str) -> None:
        self.page.get_by_label("Message", exact=True).fill(text)
        self.page.keyboard.press("Enter")

    def ask(self, text: str) -> str:
        """Sends a message and waits for the end of its answer: what was shown."""
        self.send(text)
        return self.ended()

    def ended(self) -> str:
        self.page.locator("#log[aria-busy=false]").wait_for()
        return self.answer.inner_text()

    @property
    def answer(self):
        return self.page.get_by_role("article", name="Answer").last

    def press(self, name: str) -> None:
        self.page.get_by_role("button", name=name, exact=True).last.click()

    def settings(self) -> None:
        if self.page.locator("#side").is_hidden():
            self.press("Settings")
