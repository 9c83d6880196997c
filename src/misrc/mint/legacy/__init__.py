"""The predecessor's workflow client, done again."""
