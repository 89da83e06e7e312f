"""`radistill compare`: models side by side, and which of their differences are real."""

from typing import Annotated

from typer import Argument

from radistill.cli.options import JsonFile


def compare(
    models: Annotated[
        list[str],
        Argument(
            metavar="RUN_OR_MODEL...",
            help="Run folders, models, or folders of results that `radistill evaluate --tasks` has written; "
            "the others are compared to the first. One run alone: its base, its hybrid, and arms.",
            show_default=False,
        ),
    ],
    json_file: JsonFile = None,
) -> None:
    """Compare models on the tasks that they have done, example by example, and say which differences are real."""
    from dataclasses import asdict

    from radistill.console import show
    from radistill.errors import RadistillError
    from radistill.evaluation.comparison import compare_results, read_results
    from radistill.evaluation.places import results_of
    from radistill.files import write_json
    from radistill.report.task_table import comparison_table
    from radistill.runs.folder import MAIN, RunFolder

    alone = len(models) == 1 and RunFolder(models[0]).record.is_file()
    if len(set(models)) < max(2 - alone, len(models)):
        raise RadistillError("compare: name at least two models, each of them once, or one run folder")
    found = {name: results_of(name, alone=alone) for name in models}
    # A run among others stands for its hybrid.
    places = found[models[0]] if alone else {name: of.get(MAIN) or of[name] for name, of in found.items()}
    results = [read_results(name, place) for name, place in places.items()]
    names = [one.name for one in results]
    lines = compare_results(results)
    if json_file is not None:
        real = [{"real": [line.is_real(index) for index in range(len(line.differences))]} for line in lines]
        rows = [asdict(line) | of for line, of in zip(lines, real, strict=True)]
        write_json(json_file, {"models": names, "lines": rows})
    show(comparison_table(names, lines))
