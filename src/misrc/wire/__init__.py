"""How the two sides talk: pure pairs of "build the request" and "parse the reply". Standard library only, shared."""
