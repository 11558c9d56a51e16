"""The `kvtier` command. main.py parses, one file a subcommand."""
