"""The declarations: typed, parsed once, unknown keys refused; pure renderers to the files that they imply."""
