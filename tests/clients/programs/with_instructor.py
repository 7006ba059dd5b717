"""instructor at the server that SERVER names: a class filled by a call that is demanded, and by an answer in a form."""

import os
from typing import Literal

import instructor
from openai import OpenAI
from pydantic import BaseModel


class Trip(BaseModel):
    city: Literal["Bern", "Oslo"]
    days: Literal[1, 2, 3]


for mode in (instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA, instructor.Mode.TOOLS_STRICT):
    client = instructor.from_openai(OpenAI(base_url=os.environ["SERVER"], api_key="none"), mode=mode)
    found = client.chat.completions.create(model="nano", response_model=Trip, messages=[{"role": "user", "content": "Where to?"}])
    assert isinstance(found, Trip), (mode, found)
