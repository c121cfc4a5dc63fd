"""HTTP: routes, the OpenAI protocol, replies, the server process."""
