"""The room that knows verl. `plugin` is where verl finds us; everything else is imported from there when needed.

This package must not import verl: verl imports us while it is itself half imported.
"""
