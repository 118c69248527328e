"""The commands of ``frozenllm``, one a file.

Each module has ``add(commands)``, which registers its arguments, and ``run(args) -> int``, which returns the exit code;
what a user did wrong is a ValueError of one sentence. A new command is a new file and its name here.
"""

COMMANDS = ("extract", "inspect", "families", "bench", "cost", "report", "doctor")
"""Modules of this package, in the order of the help."""
