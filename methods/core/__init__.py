"""The nouns every technique is written in, a file each. Start with `process`, end with `run`."""
