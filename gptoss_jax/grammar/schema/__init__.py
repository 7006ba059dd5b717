"""A JSON schema as grammars take it: in the keywords that the library follows, within its budget, in one spelling."""
