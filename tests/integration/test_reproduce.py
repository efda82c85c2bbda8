"""A paper's table by its name: its rows run, ours stand beside theirs, and its claims are judged."""

from __future__ import annotations

import csv
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from kifuse.benchmarks.catalog import BENCHMARKS
from kifuse.cli import app
from kifuse.comparing.grid_runs import run_grid
from kifuse.record.run_record import RunRecord
from kifuse.reporting.comparison_tables import metric
from kifuse.reporting.plots import Curves
from kifuse.reporting.run_groups import Group, Run
from kifuse.reproducing.budgets import BUDGETS
from kifuse.reproducing.catalog import Claim, PaperTable, paper_table, paper_tables
from kifuse.reproducing.grids import Wanted, chosen_rows, grids
from kifuse.reproducing.results import plots_of, result_table, rows_of, write_result
from kifuse.reproducing.verdicts import judge, rank_correlation
from kifuse.terminal.safe_console import SafeConsole
from tests.unit.reporting.runs import make_record

pytestmark = pytest.mark.usefixtures("quick")
RUNS = [each for each in paper_tables().values() if each.rows]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four tasks of Standard CL in their layout, tiny."""
    folder = tmp_path_factory.mktemp("published") / "long_sequence"
    for number, task in enumerate(BENCHMARKS["standard-cl"].orders[1]):
        for split, count in (("train", 10), ("dev", 2), ("test", 5)):
            rows = [
                {
                    "id": f"{split}{place}",
                    "input": f"red blue {'green' if place % 2 else 'one'} {number} {split} {place} Answer:",
                    "output": "apple" if place % 2 else "pear",
                }
                for place in range(count)
            ]
            file = folder / split / f"{task}.json"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(rows), encoding="utf-8")
    return folder


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["reproduce", *map(str, arguments)])


def said(result: Result) -> str:
    return " ".join(result.output.split())


SMOKE = ("rkif-table-1", "--budget", "smoke", "--benchmark", "standard-cl", "--orders", 1, "--seeds", "0,1")
ROWS = ("--rows", "SeqLoRA,LoRAReplay,Recurrent-KIF")


@pytest.fixture(scope="module")
def made(tiny_folder_llama: Path, data: Path, tmp_path_factory: pytest.TempPathFactory, quick: None) -> Any:
    """Three rows of Recurrent-KIF's Table 1 in the smallest budget, two seeds."""
    output = tmp_path_factory.mktemp("reproduced") / "table"
    return call(*SMOKE, *ROWS, "--data", data, "--model", tiny_folder_llama, "--output", output), output


def test_ours_stand_beside_theirs_in_every_format(made: tuple[Result, Path]):
    result, output = made
    assert result.exit_code == 0, result.output
    with (output / "tables" / "rkif-table-1.csv").open(encoding="utf-8", newline="") as stream:
        lines = {row["row"]: row for row in csv.DictReader(stream)}
    assert len(lines) == 14 and lines["L2P"]["standard-cl: OP"] == ""
    runs = [RunRecord.load(output / "standard-cl" / "LoRAReplay" / f"order1-seed{seed}") for seed in (0, 1)]
    ours = [run.summary()["AP"].value or 0.0 for run in runs]
    assert float(lines["LoRAReplay"]["standard-cl: OP"]) == pytest.approx(sum(ours) / 2)
    assert float(lines["LoRAReplay"]["OP, paper"]) == 68.8 and lines["LoRAReplay"]["BWT, paper"] == "-11.7"
    page = (output / "reproduction.html").read_text("utf-8")
    assert "LoRAReplay" in page and "68.8" in page and 'href="./standard-cl/comparison.html"' in page
    assert r"\begin{tabular}" in (output / "tables" / "rkif-table-1.tex").read_text("utf-8")


def test_every_claim_is_a_line_and_what_was_not_run_is_not_measured(made: tuple[Result, Path]):
    result, output = made
    with (output / "tables" / "rkif-table-1-claims.csv").open(encoding="utf-8", newline="") as stream:
        verdicts = {row["claim"]: row["verdict"] for row in csv.DictReader(stream)}
    assert verdicts["IncLoRA is above sequential training"] == "not measured"
    assert verdicts["Recurrent-KIF forgets less than replay"] in ("holds", "direction only", "not")
    assert "not measured: IncLoRA is above sequential training." in said(result)
    assert "Budget smoke" in said(result)


def test_the_same_command_again_trains_nothing(
    made: tuple[Result, Path], data: Path, tiny_folder_llama: Path
):
    _, output = made
    record = output / "standard-cl" / "SeqLoRA" / "order1-seed0" / "record.json"
    before = record.stat().st_mtime_ns
    again = call(
        *SMOKE, "--rows", "SeqLoRA", "--data", data, "--model", tiny_folder_llama, "--output", output
    )
    assert again.exit_code == 0, again.output
    assert record.stat().st_mtime_ns == before


def wanted_of(table: PaperTable, budget: str, folder: Path, **more: Any) -> Wanted:
    watch = (folder / "data",) if table.unseen else ()
    return Wanted.of(table, BUDGETS[budget], data=folder / "data", output=folder / "out", watch=watch, **more)


@pytest.mark.parametrize("table", RUNS, ids=lambda table: table.name)
@pytest.mark.parametrize("budget", ["paper", "smoke"])
def test_every_table_has_a_checked_configuration_for_each_row(table, budget: str, tmp_path: Path):
    orders = table.orders
    (tmp_path / "data").mkdir()
    found = grids(wanted_of(table, budget, tmp_path))
    assert list(found) == list(orders)
    for benchmark, grid in found.items():
        assert [run.order for run in grid.runs[:: len(grid.variants)]] == list(orders[benchmark])
        models = len(table.models) if budget == "paper" and table.models else 1
        assert len(grid.variants) == models * len(table.rows) == len({v.label for v in grid.variants})
        assert len({run.config.model.name for run in grid.runs}) == models


def test_a_row_keeps_what_it_varies_and_the_budget_sets_the_rest(tmp_path: Path):
    (tmp_path / "data").mkdir()
    wanted = wanted_of(paper_table("rkif-table-8"), "bench", tmp_path)
    runs = {run.variant.label: run.config for run in grids(wanted)["long-sequence"].runs}
    config = runs["Q-16-M-4"]
    assert (config.method.settings["inner_steps"], config.method.settings["outer_steps"]) == (16, 4)
    assert (config.data.train_examples, config.memory.per_task, config.training.epochs) == (150, 20, 4)
    share = wanted_of(paper_table("rkif-table-4"), "bench", tmp_path)
    kept = {r.variant.label: r.config.memory for r in grids(share)["long-sequence"].runs}
    assert (kept["LoRAReplay-50pct"].share, kept["LoRAReplay-50pct"].per_task) == (0.5, None)
    paper = wanted_of(paper_table("rkif-table-2"), "paper", tmp_path)
    first = grids(paper)["long-sequence"].runs[0].config
    assert (first.model.name, first.data.train_examples, first.training.epochs) == (
        "google-t5/t5-large",
        1000,
        10,
    )


def test_superni_has_room_for_its_instructions_and_answers(tmp_path: Path):
    (tmp_path / "data").mkdir()
    wanted = wanted_of(paper_table("kif-table-1"), "bench", tmp_path)
    sizes = {name: grid.runs[0].config.data for name, grid in grids(wanted).items()}
    assert (sizes["superni"].max_input, sizes["superni"].max_target) == (320, 64)
    assert (sizes["long-sequence"].max_input, sizes["long-sequence"].max_target) == (100, 16)


def test_layers_are_called_as_the_model_calls_them(tmp_path: Path, tiny_folder_llama: Path):
    (tmp_path / "data").mkdir()
    wanted = wanted_of(paper_table("rkif-table-5"), "bench", tmp_path, models=[str(tiny_folder_llama)])
    runs = {run.variant.label: run.config for run in grids(wanted)["long-sequence"].runs}
    assert runs["FFN"].model.adapter.target_modules == ["up_proj", "down_proj"]


def rows_with(**drops: list[float]) -> dict[str, Group]:
    """AP is 90 - 2 * drop."""
    return {
        name: Group(
            name, [Run(make_record(name, drop=drop, seeds={"training": s})) for s, drop in enumerate(each)]
        )
        for name, each in drops.items()
    }


def test_a_claim_holds_only_where_the_differences_are_apart_from_zero():
    claim = Claim("a is above b and c", "AP", "a", ("b", "c"))
    sure = rows_with(a=[1.0, 2.0, 3.0], b=[5.0, 6.1, 7.0], c=[8.0, 9.1, 10.0])
    assert judge(claim, sure).verdict == "holds"
    unsure = rows_with(a=[1.0, 2.0, 3.0], b=[5.0, 1.5, 7.0], c=[8.0, 9.1, 10.0])
    assert judge(claim, unsure).verdict == "direction only"
    wrong = judge(claim, rows_with(a=[4.0, 4.0], b=[1.0, 2.0], c=[8.0, 9.0]))
    assert wrong.verdict == "not" and "5.0 below b" in wrong.why and " c " not in wrong.why
    assert judge(claim, rows_with(a=[1.0], b=[2.0])).verdict == "not measured"


def test_what_is_lost_of_the_first_task_is_judged():
    [claim] = paper_table("kif-figure-5").claims
    found = judge(claim, rows_with(KIFLoRA=[1.0, 2.0, 3.0], vanilla=[5.0, 6.1, 7.0]))
    assert found.verdict == "holds" and "above vanilla" in found.why and "in first task" in found.why
    assert judge(claim, rows_with(KIFLoRA=[9.0], vanilla=[1.0])).verdict == "not"


def test_ranks_are_compared_over_the_rows_that_both_have():
    table = paper_table("rkif-table-3")
    # the paper's order: MTL, Recurrent-KIF, TaSL, VR-MCL, Replay, O-LoRA
    drops = dict(zip(["MTL", "Recurrent-KIF", "TaSL", "Replay"], [[1.0], [2.0], [3.0], [4.0]], strict=True))
    published = {row.name: row.published["superni"][0] for row in table.rows}
    found = rank_correlation(published, rows_with(**drops), metric("AP"))
    assert found == (pytest.approx(1.0), 4)
    drops["MTL"] = [9.0]
    reverse = rank_correlation(published, rows_with(**drops), metric("AP"))
    assert reverse is not None and reverse[0] == pytest.approx(-0.2)


def test_claims_name_rows_that_the_table_has():
    for table in RUNS:
        names = {row.name for row in table.rows} | ({table.unseen.untrained} if table.unseen else set())
        assert {name for claim in table.claims for name in (claim.above, *claim.below)} <= names, table.name


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rkif-table-22"], "Did you mean 'rkif-table-2'"),
        (["kif-table-3", "--data", "."], "--watch: found nothing, expected a folder of tasks"),
        (["kif-table-1", "--data", ".", "--model", "a,b"], "found 2 models, expected one"),
        (["rkif-table-2"], "--data: found nothing"),
        (["rkif-table-2", "--data", ".", "--budget", "papr"], "Did you mean 'paper'"),
        (["rkif-table-2", "--data", ".", "--rows", "nothing"], "--rows: found 'nothing'"),
        (["rkif-table-2", "--data", ".", "--benchmark", "superni"], "--benchmark: found 'superni'"),
    ],
)
def test_what_does_not_exist_is_named(arguments: list[str], message: str):
    result = call(*arguments)
    assert result.exit_code == 2 or result.exit_code == 1
    assert message in said(result) and "Traceback" not in result.output


def test_the_list_names_every_table_and_figure_of_both_papers():
    text = said(call("list"))
    tables = [*(f"kif-table-{n}" for n in range(1, 7)), *(f"rkif-table-{n}" for n in range(1, 11))]
    figures = [*(f"kif-figure-{n}" for n in range(4, 8)), *(f"rkif-figure-{n}" for n in range(3, 10))]
    assert all(name in text for name in (*tables, *figures))


@pytest.fixture(scope="module")
def superni(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The first three of SuperNI's tasks in their layout beside four that are never trained on, tiny."""
    root, benchmark = tmp_path_factory.mktemp("data"), BENCHMARKS["superni"]
    tasks = benchmark.orders[1][:3]
    for number, task in enumerate(tasks):
        (root / "superni" / task).mkdir(parents=True)
        for split, count in (("train", 4), ("test", 1)):
            rows = [{"input": f"red {number} {split} {i}", "output": ["apple"]} for i in range(count)]
            text = json.dumps({"Definition": ["Say it."], "Instances": rows})
            (root / "superni" / task / f"{split}.json").write_text(text, encoding="utf-8")
    for task in ("dialogue", "question_answering", "question_generation", "sentiment"):
        (root / "unseen" / task).mkdir(parents=True)
        rows = "".join(json.dumps({"input": f"blue {task} {i}", "output": "pear"}) + "\n" for i in range(2))
        (root / "unseen" / task / "test.jsonl").write_text(rows, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BENCHMARKS, "superni", dataclasses.replace(benchmark, orders={1: tasks}))
        yield root


def test_unseen_tasks_stand_beside_the_papers_by_category(
    superni: Path, tiny_folder_llama: Path, tmp_path: Path
):
    smallest = ("--set", "data.train_examples=2", "--set", "data.test_examples=1")
    result = call(
        *("kif-table-3", "--budget", "smoke", "--orders", 1, "--rows", "O-LoRA,KIFLoRA", *smallest),
        *("--data", superni, "--watch", superni / "unseen", "--model", tiny_folder_llama),
        *("--output", tmp_path / "out"),
    )
    assert result.exit_code == 0, result.output
    with (tmp_path / "out" / "tables" / "kif-table-3.csv").open(encoding="utf-8", newline="") as stream:
        lines = {row["row"]: row for row in csv.DictReader(stream)}
    assert list(lines) == ["T5 zero-shot", "O-LoRA", "LFPT5", "KIFLoRA"]
    record = RunRecord.load(tmp_path / "out" / "superni" / "KIFLoRA" / "order1-seed0")
    scores = {(s.after, record.watched[s.task].name): s.score for s in record.watch_scores}
    assert {after for after, _ in scores} == {0, 3}
    for row, after in (("KIFLoRA", 3), ("T5 zero-shot", 0)):
        for head, name in (("dialogue", "dialogue"), ("QA", "question_answering"), ("sentiment",) * 2):
            assert float(lines[row][head]) == pytest.approx(scores[after, name])
        mean = sum(scores[after, name] for name in ("dialogue", "question_answering", "sentiment")) / 3
        assert float(lines[row]["mean"]) == pytest.approx(mean)
    assert lines["KIFLoRA"]["extraction"] == "" and lines["KIFLoRA"]["extraction, paper"] == "31.34"
    assert lines["LFPT5"]["mean"] == "" and lines["LFPT5"]["mean, paper"] == "22.41"
    assert lines["KIFLoRA"]["question_generation"] != ""
    told = said(result)
    assert "the paper's means over the same: T5 zero-shot 5.4, O-LoRA 26.7" in told
    assert "not measured: KIFLoRA is above LFPT5 and O-LoRA on unseen tasks." in told
    assert "KIFLoRA helps on tasks that it never saw. KIFLoRA is" in told


def test_a_figure_over_models_runs_its_rows_with_each(
    data: Path, tiny_folder_llama: Path, tiny_folder_t5: Path, tmp_path: Path
):
    figure = dataclasses.replace(paper_table("kif-figure-4"), orders={"standard-cl": (1,)})
    wanted = Wanted.of(
        figure,
        BUDGETS["smoke"],
        [str(tiny_folder_llama), str(tiny_folder_t5)],
        data=data,
        output=tmp_path / "out",
    )
    found = grids(wanted)
    outcome = run_grid(found["standard-cl"], SafeConsole(quiet=True))
    assert outcome.failed == []
    result = write_result(wanted, found)
    rows = [f"KIFLoRA, {folder.name}" for folder in (tiny_folder_llama, tiny_folder_t5)]
    assert [str(line[0]) for line in result.table.rows] == rows
    assert "Quality against the size of the model" in result.page.read_text("utf-8")
    plot = next(p for p in plots_of(wanted, {"": rows_of(found["standard-cl"], wanted)}))
    assert isinstance(plot, Curves) and plot.name == "model-size" and plot.log
    sizes = [r.record.model["parameters"] / 1e6 for r in outcome.runs]
    assert sorted(x for x, _ in plot.panels[0].lines[0].points) == sorted(sizes)


def test_minutes_an_epoch_stand_beside_the_papers_of_the_same_model(tmp_path: Path):
    (tmp_path / "data").mkdir()
    record = make_record("replay")
    record.config["training"] = {"epochs": 2}
    for task in record.tasks:
        task.seconds_train = 240.0
    for models, theirs in (([], 1.5), (["t5-large", "llama-2-7b"], 6.0)):
        wanted = wanted_of(paper_table("rkif-table-9"), "smoke", tmp_path, models=models)
        row = [row.name for row in wanted.table.rows if row.name.startswith("VR-MCL")][-1]
        table = result_table(wanted, {"long-sequence": {row: Group(row, [Run(record)])}})
        cells = {str(line[0]): line for line in table.rows}[row]
        assert [cell.value for cell in cells[-2:]] == [pytest.approx(2.0), theirs]


def test_a_table_without_figures_is_read_off_the_list_of_methods(tmp_path: Path):
    result = call("kif-table-2", "--output", tmp_path / "out")
    assert result.exit_code == 0, result.output
    with (tmp_path / "out" / "tables" / "kif-table-2.csv").open(encoding="utf-8", newline="") as stream:
        lines = {row["row"]: row for row in csv.DictReader(stream)}
    assert len(lines) == 9 and lines["SAPT"]["keeps no old data"] == "no"
    assert lines["KIF"]["keeps no old data"] == lines["O-LoRA"]["answers without a task id"] == "yes"


def test_rows_are_named_with_the_commas_of_their_own_names(tmp_path: Path):
    (tmp_path / "data").mkdir()
    wanted = wanted_of(paper_table("rkif-table-8"), "smoke", tmp_path, rows=("Q 8", "M 4", "Q 4", "M 1"))
    assert [row.name for row in chosen_rows(wanted)] == ["Q 4, M 1", "Q 8, M 4"]
