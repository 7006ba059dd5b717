"""A load on a server that speaks OpenAI's protocol: what is asked (`work`), how it goes over the wire (`wire`), what it took (`figures`).

Knows nothing of the server but its address. No client's library: a thousand streams on two cores leave none of a millisecond a chunk.
"""
