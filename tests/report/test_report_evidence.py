"""Tasks and savings in the report."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from example_evidence import savings, write_example_evidence, write_tasks
from example_run import write_example_run
from html_checks import Page, read_page

from radistill.errors import RadistillError
from radistill.report.page import write_report


def page_of(folder: Path) -> Page:
    page = read_page(write_report(folder).read_text(encoding="utf-8"))
    assert page.problems == []
    assert page.count("section") == 9
    page.text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    return page


def test_a_report_without_them_says_how_they_are_made(tmp_path: Path) -> None:
    text = page_of(write_example_run(tmp_path)).text
    assert f"radistill evaluate {tmp_path.name} --tasks gsm8k,recall" in text
    assert f"radistill savings {tmp_path.name}" in text


def test_tasks_have_intervals_and_a_verdict_each(tmp_path: Path) -> None:
    folder = write_example_evidence(write_example_run(tmp_path))
    page = page_of(folder)
    html = (folder / "report.html").read_text(encoding="utf-8")
    table = re.findall(r"<table>.*?</table>", html, flags=re.DOTALL)[1]
    rows = [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in re.findall(r"<tr>.*?</tr>", table, re.DOTALL)[1:]]
    rows = [row.replace("\N{NO-BREAK SPACE}", " ") for row in rows]
    assert rows[0].startswith("gsm8k 40 75.0 % 59.8–85.8 4 unfinished 30.0 % 18.1–45.4 4 unfinished +0 −18, p ")
    assert rows[0].endswith("real loss")
    assert [row.split(" 20 ")[0] for row in rows[2:4]] == ["key-value 512", "key-value 1,024"]
    assert rows[-1].startswith("perplexity 20 0.300 nats/byte perplexity 3.32 0.480 nats/byte")
    assert rows[-1].endswith("real loss")
    assert "On tasks: gsm8k 30.0 % (18.1–45.4), base 75.0 % (59.8–85.8): real loss; recall" in page.text
    assert "answers of at most 512 tokens, batch size 16, seed 0" in page.text


def test_damaged_results_of_a_task_are_left_out_and_said_so(tmp_path: Path) -> None:
    folder = write_example_evidence(write_example_run(tmp_path))
    rows = folder / "tasks" / "hybrid" / "recall.jsonl"
    rows.write_bytes(rows.read_bytes()[:-100])
    page = page_of(folder)
    again = f"radistill evaluate models/hybrid --tasks recall --out {folder / 'tasks' / 'hybrid'}"
    assert f"{rows}, line " in page.text
    assert again in page.text
    assert "On tasks: gsm8k 30.0 %" in page.text
    summary = folder / "tasks" / "base" / "tasks.json"
    other = json.loads(summary.read_text())
    other["tasks"]["gsm8k"]["settings"]["max_new_tokens"] = 5
    summary.write_text(json.dumps(other))
    assert "Left out: gsm8k: base had 5 tokens for an answer and hybrid 512" in page_of(folder).text
    summary.write_text("{")
    assert "tasks.json: not valid JSON" in page_of(folder).text


def test_recall_and_savings_are_drawn(tmp_path: Path) -> None:
    page = page_of(write_example_evidence(write_example_run(tmp_path)))
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert page.count("svg", "wide") == page.count("svg", "narrow") == page.count("figure") == 11
    assert "base: 75.0 at 512, 40.0 at 1,024, 10.0 at 4,096; hybrid: 30.0 at 512" in html
    assert len(re.findall(r'class="interval base"', html)) == 2 * 2 * 3  # kinds, page widths, contexts
    assert re.search(r'<text[^>]*class="tick"[^>]*>4k</text>', html)
    assert len(set(page.attributes("id"))) == len(page.attributes("id"))


def test_savings_are_told_in_numbers(tmp_path: Path) -> None:
    page_of(write_example_evidence(write_example_run(tmp_path)))
    html = (tmp_path / "report.html").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    text = " ".join(re.sub(r"<[^>]+>", " ", html).split())
    assert "KV cache a token 45.0 KiB 30.0 KiB 0.67 ×" in text
    assert "cache at 128k tokens 5.62 GiB 3.75 GiB 0.67 ×" in text
    assert "512 prefill, tokens/s 520 650 1.2 ×" in text
    assert "decoding with a draft, tokens/s 9.50 (61 % accepted)" in text
    assert "float32 on cpu (Example CPU @ 2.50GHz, 2 threads)" in text


def test_answers_to_tasks_stand_side_by_side_and_stay_text(tmp_path: Path) -> None:
    page = page_of(write_example_evidence(write_example_run(tmp_path)))
    assert page.count("script") == 0
    assert "gsm8k: What is 0 + 0? <b>&</b>" in page.text
    assert "hybrid says <script>alert(1)</script>: 2" in page.text
    assert "right, unfinished; " in page.text


def test_the_commands_that_measure_it_again(tmp_path: Path) -> None:
    folder = write_example_evidence(write_example_run(tmp_path / "mine"))
    text = page_of(folder).text
    assert (
        "radistill evaluate mine-again --tasks gsm8k --data 'gsm8k=my test.jsonl' "
        "--max-new-tokens 512 --batch-size 16 --seed 0\n"
    ) in text
    assert "--tasks recall --contexts 512,1024 --max" in text
    assert "radistill savings mine-again --contexts 512,1024,4096 --batch-size 1 --decode-tokens 32 --repeats 3" in text
    assert "data my test.jsonl (SHA-256 0123456789ab…)" in text


def test_a_base_alone_is_shown_alone(tmp_path: Path) -> None:
    write_tasks(write_example_run(tmp_path), "base", 30)
    text = page_of(tmp_path).text
    assert "Only the base has been evaluated" in text
    assert "Difference" not in text
    assert "On tasks:" not in text


@pytest.mark.parametrize("junk", [None, 3, [None, 1], {"a": "b"}, float("nan")])
@pytest.mark.parametrize("field", ["settings", "models", "contexts", "device"])
def test_savings_of_another_shape_are_refused(tmp_path: Path, field: str, junk: Any) -> None:
    folder = write_example_run(tmp_path)
    (folder / "savings.json").write_text(json.dumps(savings() | {field: junk}))
    with pytest.raises(RadistillError, match=rf"savings\.json: ({field}|not valid JSON)"):
        page_of(folder)


@pytest.mark.parametrize("junk", ["text", [], {"a": 1}, -5.5, True, float("inf")])
@pytest.mark.parametrize("figure", ["peak_bytes", "cache_bytes"])
def test_a_figure_of_the_savings_of_another_type_is_refused(tmp_path: Path, figure: str, junk: Any) -> None:
    folder, content = write_example_run(tmp_path), savings()
    content["contexts"][1]["hybrid"][figure] = junk
    (folder / "savings.json").write_text(json.dumps(content))
    with pytest.raises(RadistillError, match=rf"savings\.json: (contexts\.1\.hybrid\.{figure}|not valid JSON)"):
        page_of(folder)


def test_figures_of_the_savings_may_be_null(tmp_path: Path) -> None:
    folder, content = write_example_run(tmp_path), savings()
    content["contexts"][1]["hybrid"] = dict.fromkeys(content["contexts"][1]["hybrid"])
    (folder / "savings.json").write_text(json.dumps(content))
    page_of(folder)
