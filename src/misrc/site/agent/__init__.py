"""Door 2: the agent that asks a server for work, ours or the predecessor's."""
