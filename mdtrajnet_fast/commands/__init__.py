"""The commands of `mdtrajnet`, a module each: its HELP, `add_arguments` and `run`."""
