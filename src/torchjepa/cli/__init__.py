"""The `jepa` command: one file per subcommand; a file with a function `run` is found by itself."""
