"""The commands, one file each. What a command file holds is told in `cli.py`."""
