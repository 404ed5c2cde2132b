"""The `jepa` command: one file per subcommand; a file that begins with `jepa <its name>: ` is found by itself."""
