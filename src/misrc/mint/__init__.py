"""MInt's side: one job's way through staging, execution and retrieval, and the commands around it."""
