"""Running code that a model wrote, locked down: `run_code` is the whole interface. See docs/how-to/evaluation.md."""

from radistill.evaluation.sandbox.run import Limits, Outcome, Status, layers, run_code

__all__ = ["Limits", "Outcome", "Status", "layers", "run_code"]
