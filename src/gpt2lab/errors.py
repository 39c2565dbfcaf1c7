"""What goes wrong with a name: input that cannot be used, and a training that cannot go on."""


class InputError(ValueError):
    """Something that a user gave is wrong; the message says what, where, and what to do about it."""


class TrainingError(RuntimeError):
    """A training cannot go on; the message says why, and what is left of it."""
