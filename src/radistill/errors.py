"""The exceptions that users see."""

from radistill.texts import readable


class RadistillError(Exception):
    """A problem that the user can solve.

    The message is one line that names the file, the field or the layer, and the way out. The command line prints it and
    exits with code 2; everything else that escapes is a defect of ours and keeps its traceback. It may quote what a
    user or a file says: what cannot be shown is replaced.
    """

    def __init__(self, message: str) -> None:
        """The line, which `readable` makes fit to be shown."""
        super().__init__(readable(message))


class TrainingDivergedError(RadistillError):
    """A model in training has a loss, a gradient or logits that are not finite."""
