"""Which method is the default: the experiment behind ``docs/methods.md``."""
