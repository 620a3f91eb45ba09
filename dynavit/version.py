"""The version of the library, in this one place."""

__version__ = "0.2.0"
