"""The exceptions that users see."""


class RadistillError(Exception):
    """A problem that the user can solve.

    The message is one line that names the file, the field or the layer, and the way out. The command line prints it and
    exits with code 2; everything else that escapes is a defect of ours and keeps its traceback.
    """


class TrainingDivergedError(RadistillError):
    """A model in training has a loss, a gradient or logits that are not finite."""
