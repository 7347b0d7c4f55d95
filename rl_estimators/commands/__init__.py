"""The subcommands of ``rl-estimators``, one a file.

Each has ``add_arguments(parser)`` and ``run(options)``, which returns the exit code: 0 if all is well,
1 if what it found is not, 2 if it could not do what was asked. A file is imported only when its command is called, so it
may import what it needs at its top.
"""
