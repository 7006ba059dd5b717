"""A server on nano for the clients of a file; it answers by itself where a test does not say what it is to say."""

import httpx
import pytest
from serving import Served, serve

from gptoss_jax import LLM


@pytest.fixture(scope="module")
def server():
    llm = LLM("checkpoints/nano", slots=4, context=4096)
    with serve(llm) as served:
        yield served


@pytest.fixture
def served(server) -> Served:
    """The file's server; whatever a test asks of it has ended afterwards, and holds nothing."""
    server.says, server.heard = {}, []
    yield server
    assert server.idle()


@pytest.fixture
def http(served) -> httpx.Client:
    """For a client of the protocol: whatever comes through is looked at with the types of OpenAI's library."""
    with served.watched() as (client, _):
        yield client
