"""What the command lines of all pipelines share: options, and the exit codes of a program."""
