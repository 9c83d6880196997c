"""Programs as MInt's modules: their files, their scripts, and a player to try them with."""
