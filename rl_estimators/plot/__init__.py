"""Curves of training runs, read from what verl and TRL log by themselves.

:mod:`~rl_estimators.plot.find` finds the logs of a folder, one reader a format makes a
:class:`~rl_estimators.plot.runs.Run` of each, :mod:`~rl_estimators.plot.concepts` says what the frameworks call the
same thing, and :mod:`~rl_estimators.plot.draw` and :mod:`~rl_estimators.plot.table` show it.
"""
