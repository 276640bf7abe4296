"""Errors meant for the person who runs the program: one line that says what is wrong and what would be right.

The command line prints them without a traceback and leaves with their exit code.
"""

from __future__ import annotations


class UserError(Exception):
    """What the user gave cannot work; the message is one complete line."""

    exit_code = 2


class ConfigError(UserError):
    """A setting is unknown, of the wrong type, out of range or inconsistent with another."""


class DataError(UserError):
    """A dataset is missing, empty, unreadable, or lacks the named column or split."""


class NoAudioError(DataError):
    """A dataset is there, but the column that should hold its audio is missing or holds something else."""


class CheckpointError(UserError):
    """A checkpoint or model folder is missing, damaged, or belongs to another model or run."""


class LaunchError(UserError):
    """The processes of the run cannot reach, or have lost, each other: starting again may help, as sysexits.h says of 75."""

    exit_code = 75


class TrainingError(UserError):
    """The numbers of the training itself do not allow to go on."""


class PublishError(UserError):
    """A model could not be brought to the Hub."""
