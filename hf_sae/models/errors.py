"""Errors that a checkpoint or its configuration can raise."""


class ConfigError(ValueError):
    """An unknown key, a wrong type, or values that contradict each other in a config."""


class CheckpointError(ValueError):
    """Files that cannot be read, or a missing, unexpected, misshapen or non-finite tensor."""
