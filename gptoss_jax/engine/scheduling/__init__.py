"""Who is read, who gets a slot, pages and an adapter's place, and who has to give way: what the host knows of requests on their way.

Knows requests, sizes and what a request's hook looks at; no arrays of the device and no readers.
"""
