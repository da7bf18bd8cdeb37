"""One file a command. Bad input raises ValueError or FileNotFoundError, in one line, before anything is written."""
