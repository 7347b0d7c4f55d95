"""Prints how many cases were tried; fewer than asked for is a failure."""

import os

import pytest

from fuzz import cases


def pytest_terminal_summary(terminalreporter):
    if not cases.tried:
        return
    parts = [f"{number:,} of {kind}" for kind, number in cases.tried.items()]
    terminalreporter.write_line(f"fuzz: {cases.tried.total():,} cases: {', '.join(parts)}")
    if _too_few():
        terminalreporter.write_line(f"fuzz: {cases.WANTED:,} were asked for by {cases.VARIABLE}", red=True)


def pytest_sessionfinish(session):
    if not session.exitstatus and _too_few():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def _too_few():
    return cases.VARIABLE in os.environ and cases.tried.total() < cases.WANTED
