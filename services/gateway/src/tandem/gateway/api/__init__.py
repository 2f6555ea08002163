"""What clients send and get: requests checked field by field, answers in each API's shape, and the document of both."""
