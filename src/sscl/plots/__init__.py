"""Every picture of the program."""
