"""The values that flow through elastivid. A leaf: it imports nothing else of the library."""
