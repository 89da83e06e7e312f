"""`radistill report`: the page of a run."""

from radistill.cli.options import LATEST, Out, RecipePath, Set, recipe_of, run_stage


def report(recipe: RecipePath = None, out: Out = LATEST, set_: Set = None) -> None:
    """Write report.html from what the run folder holds."""
    from radistill.console import note
    from radistill.locks import locked
    from radistill.report.page import write_report

    if recipe is not None or set_:
        run_stage("report", recipe, out, set_ or [])
        return
    recipe_of(None, out)
    with locked(out):
        note(f"report: {write_report(out)}")
