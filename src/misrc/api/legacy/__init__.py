"""The predecessor's calls on the same store, and the server under its old name."""
