"""The error of a file that can't be decoded."""


class DecodeError(ValueError):
    """The file is not an image that can be used; the message says why."""
