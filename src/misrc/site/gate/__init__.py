"""Door 1: the forced command of a job key, its verbs, and the transfers over its connection."""
