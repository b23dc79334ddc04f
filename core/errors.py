"""The errors a user is meant to read: each is one sentence, printed without a traceback."""


class JumpsuiteError(Exception):
    """Something failed that the user can act on. The message names the thing, the value and the remedy."""


class ConfigError(JumpsuiteError):
    """The suite file, or an argument, asks for something impossible. Known before a device is booked."""


class SickDictionary(JumpsuiteError):
    """Training of one dictionary was stopped because it cannot come to anything."""
