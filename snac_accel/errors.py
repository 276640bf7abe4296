"""Errors meant for the person who runs the program: one line that says what is wrong and what would be right.

The command line prints them without a traceback and leaves with exit code 2.
"""

from __future__ import annotations


class UserError(Exception):
    """What the user gave cannot work; the message is one complete line."""


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, out of range or inconsistent with another."""


class DataError(UserError):
    """A dataset is missing, empty, unreadable, or lacks the named column or split."""


class CheckpointError(UserError):
    """A checkpoint or model folder is missing, damaged, or belongs to another model or run."""
