"""The papers' settings: every recipe runs as it stands, says where each value is from, and can be copied."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from kifuse.benchmarks.catalog import BENCHMARKS
from kifuse.cli import app
from kifuse.config import RunConfig, load_config
from kifuse.errors import ConfigError
from kifuse.recipes import catalog, fill_recipe, model_names, papers, read_recipe, recipe_names
from kifuse.recipes.lines import Line, as_yaml, format_recipe, parse_recipe
from kifuse.registry import build_method

NAMES = recipe_names()
ORDERS = [(name, number) for name, each in BENCHMARKS.items() for number in each.orders]
ROWS = [(paper, row) for paper in papers().values() for row in paper.rows]

# kif.md, section 7, once more: what both papers set, by kind of model and by paper
BOTH = {
    "training.learning_rate": 3e-4,
    "training.epochs": 10,
    "data.max_input": 512,
    "data.max_target": 128,
    "model.adapter.kind": "lora",
    "model.adapter.rank": 8,
    "model.adapter.dropout": 0.05,
    "evaluation.max_new_tokens": 128,
}
T5 = {
    "training.batch_size": 8,
    "model.adapter.alpha": 32,
    "model.adapter.target_modules": ["q", "v"],
    "model.quantization": "none",
}
LLAMA = {"model.adapter.target_modules": ["q_proj", "v_proj"], "model.quantization": "8bit"}
LLAMA_KIF = {"training.batch_size": 128, "model.adapter.alpha": 16}
LLAMA_RECURRENT_KIF = {"training.batch_size": 64, "model.adapter.alpha": 32}

# kif.md, section 8, once more: (AP, FWT, BWT) and (OP, BWT) on T5-large
PUBLISHED = {
    ("kif", "Table I", "SeqLoRA", "long-sequence"): (9.72, 6.81, -73.37),
    ("kif", "Table I", "Replay", "long-sequence"): (70.98, 3.28, -15.42),
    ("kif", "Table I", "EWC", "long-sequence"): (45.45, 3.73, -25.93),
    ("kif", "Table I", "EWC", "superni"): (17.5, None, -28.6),
    ("kif", "Table I", "KIF", "long-sequence"): (70.71, 11.80, -3.67),
    ("kif", "Table I", "KIFLoRA", "long-sequence"): (72.29, 12.89, -3.04),
    ("kif", "Table I", "KIF-M", "long-sequence"): (84.21, 12.32, -1.08),
    ("kif", "Table I", "KIFLoRA-M", "long-sequence"): (84.36, 11.71, -0.98),
    ("kif", "Table I", "SeqLoRA", "superni"): (6.43, None, -30.9),
    ("kif", "Table I", "Replay", "superni"): (35.37, None, -15.8),
    ("kif", "Table I", "KIF", "superni"): (26.41, None, -18.6),
    ("kif", "Table I", "KIFLoRA", "superni"): (27.43, None, -16.9),
    ("kif", "Table I", "KIF-M", "superni"): (52.12, None, -1.3),
    ("kif", "Table I", "KIFLoRA-M", "superni"): (53.01, None, -0.8),
    ("recurrent-kif", "Table 1", "SeqLoRA", "standard-cl"): (43.7, -50.4),
    ("recurrent-kif", "Table 1", "LoRAReplay", "standard-cl"): (68.8, -11.7),
    ("recurrent-kif", "Table 1", "EWC", "standard-cl"): (50.3, None),
    ("recurrent-kif", "Table 1", "MIGU", "standard-cl"): (76.6, None),
    ("recurrent-kif", "Table 1", "MIGU", "long-sequence"): (76.5, None),
    ("recurrent-kif", "Table 1", "TaSL", "standard-cl"): (76.3, -4.0),
    ("recurrent-kif", "Table 1", "Recurrent-KIF", "standard-cl"): (78.4, -2.8),
    ("recurrent-kif", "Table 1", "MTL", "standard-cl"): (80.3, None),
    ("recurrent-kif", "Table 1", "SeqLoRA", "long-sequence"): (11.6, -73.4),
    ("recurrent-kif", "Table 1", "LoRAReplay", "long-sequence"): (70.9, -15.4),
    ("recurrent-kif", "Table 1", "TaSL", "long-sequence"): (74.4, -5.3),
    ("recurrent-kif", "Table 1", "Recurrent-KIF", "long-sequence"): (77.8, -3.6),
    ("recurrent-kif", "Table 1", "MTL", "long-sequence"): (81.8, None),
    ("recurrent-kif", "Table 1", "LoRAReplay", "superni"): (35.4, -15.8),
    ("recurrent-kif", "Table 1", "TaSL", "superni"): (41.3, -12.7),
    ("recurrent-kif", "Table 1", "Recurrent-KIF", "superni"): (43.3, -8.4),
    ("recurrent-kif", "Table 1", "MTL", "superni"): (50.7, None),
    ("recurrent-kif", "Other models", "Recurrent-KIF", "long-sequence"): (78.2, None),
    ("recurrent-kif", "Table 1", "VR-MCL", "standard-cl"): (76.0, -3.7),
    ("recurrent-kif", "Table 1", "VR-MCL", "long-sequence"): (74.8, -4.9),
    ("recurrent-kif", "Table 1", "VR-MCL", "superni"): (40.5, -10.9),
    ("o-lora", "Main results", "O-LoRA", "standard-cl"): (75.8,),
    ("o-lora", "Main results", "O-LoRA", "long-sequence"): (69.6,),
    **{
        ("recurrent-kif", "Memory size", f"{name} {share}", "long-sequence"): (value, None)
        for name, values in {
            "LoRAReplay": (71.2, 72.4, 73.8, 76.1),
            "Recurrent-KIF": (77.9, 78.7, 79.8, 80.5),
        }.items()
        for share, value in zip(("2%", "5%", "10%", "50%"), values, strict=True)
    },
}

# what makes each row what it is; everything else of its section `method` is its paper's main row's
DIFFERENCES = {
    "kiflora-first-order": {"order": "first"},
    "kiflora-gradient": {"order": "gradient"},
    "kiflora-magnitude": {"order": "magnitude"},
    "kiflora-no-smoothing": {"smoothing": False, "uncertainty": False},
    "kiflora-no-uncertainty": {"uncertainty": False},
    "kiflora-static": {"fusion": "static"},
    "rkif-no-die": {"outer_importance": "static"},
    "rkif-no-ki": {"masks": "none"},
    "rkif-gm": {"masks": "global"},
    "rkif-adaptive": {"masks": "soft"},
    "rkif-no-share": {"share": False},
    "rkif-gradient": {"importance": "gradient"},
    "rkif-no-smoothing": {"smoothing": False},
    "rkif-one-fusion": {"rounds": "one"},
}


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def refused(result: Any, *expected: str) -> None:
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    for text in expected:
        assert text in result.output


def loaded(folder: Path, text: str) -> RunConfig:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def flat(config: Any, prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in (config.model_dump(mode="json") if isinstance(config, RunConfig) else config).items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def method_of(name: str) -> Any:
    section = yaml.safe_load(read_recipe(name))["method"]
    return build_method(section.pop("name"), section)


def test_every_file_is_a_row_and_every_row_has_a_file() -> None:
    files = {path.stem for path in catalog.FOLDER.glob("*/*.yaml")}
    assert files == set(NAMES)
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_with_every_model_and_every_order(tmp_path: Path, name: str) -> None:
    own = catalog.recipe_paper(name).name
    for model in model_names():
        config = loaded(tmp_path, fill_recipe(name, model=model).text)
        values = flat(config)
        more = {**LLAMA, **(LLAMA_KIF if own == "kif" else LLAMA_RECURRENT_KIF)} if "llama" in model else T5
        for key, value in {**BOTH, **more}.items() if own in ("kif", "recurrent-kif") else ():
            if (name, key, "llama" in model) != ("rkif-published-code", "data.max_input", False):
                assert values[key] == value, (model, key)
        build_method(config.method.name, config.method.settings)
    for benchmark, order in ORDERS:
        config = loaded(tmp_path, fill_recipe(name, benchmark=benchmark, order=order).text)
        assert (config.data.benchmark, config.data.order) == (benchmark, order)


@pytest.mark.parametrize("name", ["kiflora-m", "recurrent-kif"])
def test_a_recipe_runs_with_every_combination_of_them(tmp_path: Path, name: str) -> None:
    outputs = set()
    for model, (benchmark, order) in product(model_names(), ORDERS):
        config = loaded(tmp_path, fill_recipe(name, model=model, benchmark=benchmark, order=order).text)
        assert (config.data.benchmark, config.data.order) == (benchmark, order)
        outputs.add(config.output)
    assert len(outputs) == len(model_names()) * len(ORDERS)


@pytest.mark.parametrize("name", NAMES)
def test_a_model_and_an_order_change_no_line_of_the_other(name: str) -> None:
    """So that each alone being right, as tested above, makes every combination right."""
    plain = parse_recipe(fill_recipe(name).text)[1]

    def changed(**options: Any) -> set[Line]:
        now = parse_recipe(fill_recipe(name, **options).text)[1]
        return {new for new, old in zip(now, plain, strict=True) if new != old and new.key != "output"}

    by_model = {model: changed(model=model) for model in model_names()}
    by_order = {(each, number): changed(benchmark=each, order=number) for each, number in ORDERS}
    for model, (benchmark, order) in product(by_model, by_order):
        both = changed(model=model, benchmark=benchmark, order=order)
        assert both == by_model[model] | by_order[benchmark, order]
        assert len({line.key for line in both}) == len(both)


def test_no_two_rows_share_an_output_folder() -> None:
    different = {row.arguments: row for _, row in ROWS}.values()
    filled = [fill_recipe(row.recipe, model=row.model, settings=row.settings) for row in different]
    assert len({parse_recipe(each.text)[1][-1] for each in filled}) == len(filled)


@pytest.mark.parametrize("name", NAMES)
def test_every_value_says_where_it_is_from(name: str) -> None:
    for text in (read_recipe(name), fill_recipe(name, model="llama-2-7b", benchmark="superni").text):
        values = [line for line in text.splitlines() if not line.startswith("#") and not line.endswith(":")]
        for line in values:
            source = line.partition("  # ")[2]
            assert re.search(r"paper|authors' script|kifuse|published|README|benchmark", source), line
        assert max(map(len, text.splitlines())) <= 110
        assert len(values) == len(flat(yaml.safe_load(text)))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_written_in_the_form_it_is_read_in(name: str) -> None:
    heading, values = parse_recipe(read_recipe(name))
    assert format_recipe(heading, values) == read_recipe(name)
    assert heading


@pytest.mark.parametrize("paper", papers())
def test_the_recipes_of_a_paper_agree_outside_of_their_method(paper: str) -> None:
    own = {"method", "memory", "output"}
    alike: dict[str, set[str]] = {}
    for name in {row.recipe for row in papers()[paper].rows} - {"rkif-published-code"}:
        for key, value in flat(yaml.safe_load(read_recipe(name))).items():
            if key.partition(".")[0] not in own and key not in ("data.benchmark", "data.order"):
                alike.setdefault(key, set()).add(json.dumps(value))
    assert {key: values for key, values in alike.items() if len(values) > 1} == {}


def test_only_methods_that_replay_have_a_memory() -> None:
    for name in NAMES:
        section = yaml.safe_load(read_recipe(name)).get("memory")
        uses = method_of(name).old_data in ("mixed", "steps")
        assert (section == {"share": 0.02, "selection": "balanced"}) if uses else section is None, name


@pytest.mark.parametrize("name", DIFFERENCES)
def test_an_ablation_changes_what_its_row_says_and_nothing_else(name: str) -> None:
    main = method_of("kiflora" if name.startswith("kiflora") else "recurrent-kif")
    own = method_of(name)
    fields = [key for key in own.__dataclass_fields__ if not key.startswith("_")]
    assert type(own) is type(main)
    changed = {key: getattr(own, key) for key in fields if getattr(own, key) != getattr(main, key)}
    assert changed == DIFFERENCES[name]


def test_the_main_rows_are_the_papers() -> None:
    kif, kiflora, recurrent = method_of("kif"), method_of("kiflora"), method_of("recurrent-kif")
    assert (kif.units, kif.order, kif.fusion, kif.gamma, kif.quantile) == (
        "matrix",
        "first",
        "static",
        0.7,
        0.8,
    )
    assert (kiflora.units, kiflora.order, kiflora.fusion, kiflora.tau) == ("rank", "second", "adaptive", 0.15)
    assert (kif.orthogonality, kiflora.orthogonality) == (0.0, 0.1)
    for method in (kif, kiflora):
        assert (method.alpha1, method.alpha2, method.beta, method.reading) == (0.85, 0.85, 0.7, "before")
    assert (recurrent.inner_steps, recurrent.outer_steps, recurrent.quantile) == (8, 4, 0.8)
    assert (recurrent.alpha_inner, recurrent.alpha_outer, recurrent.outer_lr) == (0.55, 0.55, None)
    assert method_of("kif-m").replay_epochs > 0
    assert method_of("kiflora-m").replay_epochs > 0


def test_the_recipes_that_stack_are_the_authors() -> None:
    for name, rate, epochs, batch in (
        ("o-lora", 1e-3, 1, 64),
        ("inclora", 1e-3, 1, 64),
        ("n-lora", 1e-3, 10, 48),
    ):
        found = flat(yaml.safe_load(read_recipe(name)))
        keys = ("learning_rate", "epochs", "batch_size", "scheduler")
        assert [found[f"training.{key}"] for key in keys] == [rate, epochs, batch, "constant"]
        adapter = [found[f"model.adapter.{key}"] for key in ("rank", "alpha", "dropout", "target_modules")]
        assert adapter == [8, 32, 0.1, ["q", "v"]]
    o_lora = method_of("o-lora")
    assert (o_lora.orthogonality, o_lora.norm, o_lora.penalty) == (0.5, 0.0, "squares")
    assert method_of("n-lora").product == "BA" and not method_of("ella").normalise


def test_the_recipes_against_moving_what_matters_are_the_authors_where_they_say() -> None:
    found = flat(yaml.safe_load(read_recipe("migu")))
    keys = ("learning_rate", "epochs", "batch_size", "scheduler")
    assert [found[f"training.{key}"] for key in keys] == [1e-4, 1, 8, "constant"]
    assert [found[f"model.adapter.{key}"] for key in ("rank", "alpha", "dropout")] == [8, 32, 0.1]
    assert method_of("migu").quantile == method_of("rkif-migu").quantile == 0.7
    for name in ("kif-ewc", "rkif-ewc", "rkif-online-ewc", "rkif-ogd"):
        own, plain = method_of(name), type(method_of(name))()
        # nobody has published values for these benchmarks: they are kifuse's own
        assert own.settings() == {**plain.settings(), **({"online": True} if "online" in name else {})}


def test_the_later_rivals_recipes_have_the_values_that_are_known() -> None:
    aim, forever, slao = (method_of(name) for name in ("aimmerging", "forever", "slao"))
    assert (aim.interval, aim.memory_steps, aim.threshold, aim.shortest, aim.longest) == (8, 8, 2.0, 2, 128)
    assert (forever.day_steps, forever.anchor, forever.smoothing) == (24, 1e-3, 0.05)
    assert (forever.schedule, forever.clip) == ((1, 2, 4, 7, 15, 30), (0.5, 3.0))
    assert (slao.start, slao.keep_function) == ("last-fine-tuned", False)
    vr_mcl = method_of("rkif-vr-mcl")
    assert (vr_mcl.alpha, vr_mcl.alpha_lr, vr_mcl.momentum) == (0.001, 2.5e-5, 0.15)
    assert not vr_mcl.second_order
    for name, batch, rate in (("aimmerging", 32, 3e-4), ("slao", 8, 1e-4)):
        training = yaml.safe_load(read_recipe(name))["training"]
        assert (training["batch_size"], training["learning_rate"]) == (batch, rate)


def test_the_recipe_of_osf_is_the_authors_where_it_says() -> None:
    found = flat(yaml.safe_load(read_recipe("osf")))
    keys = ("learning_rate", "epochs", "batch_size", "scheduler", "weight_decay", "max_grad_norm")
    assert [found[f"training.{key}"] for key in keys] == [5e-5, 1, 8, "constant", 0.01, 0.0]
    assert found["model.adapter.kind"] == "osf" and found["model.adapter.preserve"] == 0.001
    assert found["model.adapter.target_modules"] == ["q", "k", "v", "o", "wi", "wo"]
    method = method_of("osf")
    assert [round(method.preserved(t, 0.001), 3) for t in range(3)] == [0.001, 0.071, 0.141]


def test_the_published_figures_are_those_of_the_papers() -> None:
    found = {
        (paper.name, row.table, row.name, benchmark): values
        for paper, row in ROWS
        for benchmark, values in row.published.items()
    }
    assert found == PUBLISHED


@pytest.mark.parametrize(("paper", "row"), ROWS, ids=lambda each: getattr(each, "arguments", None))
def test_what_a_row_changes_is_a_setting_that_is_right(tmp_path: Path, paper: Any, row: Any) -> None:
    config = loaded(tmp_path, fill_recipe(row.recipe, model=row.model, settings=row.settings).text)
    values = flat(config)
    assert {key: values[key] for key in row.settings} == dict(row.settings)
    assert catalog.recipe_paper(row.recipe) == paper


def test_the_head_names_the_rows_that_the_file_gives() -> None:
    plain = fill_recipe("recurrent-kif", benchmark="long-sequence").text
    assert "Table 1, Recurrent-KIF; published for t5-large: OP 77.8, BWT -3.6" in plain
    assert "Memory size, Recurrent-KIF 2%; published for t5-large: OP 77.9" in plain
    assert "Recurrent-KIF 10%" not in plain
    assert "llama" not in plain
    more = fill_recipe("recurrent-kif", benchmark="long-sequence", settings={"memory.share": 0.1}).text
    assert "Memory size, Recurrent-KIF 10%; published for t5-large: OP 79.8" in more
    assert "77.8" not in more
    llama = fill_recipe("recurrent-kif", model="llama-2-7b", benchmark="long-sequence").text
    assert "published for llama-2-7b: OP 78.2" in llama


values_of_keys = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=20), st.lists(st.text(max_size=5), max_size=3)
)


@given(values_of_keys, st.from_regex(r"\w[\w ]{0,20}\w", fullmatch=True))
def test_any_value_is_written_as_yaml_in_one_line(value: Any, source: str) -> None:
    text = format_recipe(["A head."], [Line("a.b", as_yaml(value), source)])
    assert yaml.safe_load(text) == {"a": {"b": value}}
    assert text.count("\n") == 3


@pytest.mark.parametrize("text", ["a:\n    b: 1  # deep\n", "a: 1\n", "a:\n  b: 1  # x\n\n", "- a  # x\n"])
def test_a_recipe_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"line \d: found"):
        parse_recipe(text)


def write_published(root: Path) -> Path:
    """The layout of the authors' files, with two tiny examples a split."""
    for task in BENCHMARKS["standard-cl"].orders[1]:
        for split in ("train", "dev", "test"):
            rows = [
                {
                    "id": f"{split}{i}",
                    "input": f"Which? Option: A, B.\n{split} {i}\nAnswer:",
                    "output": "AB"[i],
                }
                for i in (0, 1)
            ]
            path = root / "long_sequence" / split / f"{task}.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(rows), encoding="utf-8")
    return root


def test_a_copied_file_is_valid_as_it_is(tmp_path: Path) -> None:
    target, data = tmp_path / "mine.yaml", write_published(tmp_path / "my data")
    result = call("cp", "recurrent-kif", target, "--data", data)
    assert result.exit_code == 0, result.output
    assert f"kifuse validate {target}" in result.output
    assert f"kifuse run {target}" in result.output
    checked = call("validate", target)
    assert checked.exit_code == 0, checked.output
    assert "google-t5/t5-large" in checked.output


def test_without_data_the_user_is_told_what_is_missing(tmp_path: Path) -> None:
    target = tmp_path / "mine.yaml"
    assert "Set data.path" in call("cp", "kiflora", target).output
    refused(call("validate", target, "--set", "data.path=/nowhere"), "--set data.path", "not there")
    own = tmp_path / "own.yaml"
    result = call("cp", "kiflora", own, "--benchmark", "support-desk", "--model", "smollm2-135m")
    assert "Set data.path" not in result.output
    assert call("validate", own).exit_code == 0


def test_any_other_model_gets_the_query_and_value_projections(tmp_path: Path) -> None:
    for model in ("smollm2-135m", "someone/a-model", str(tmp_path)):
        config = loaded(tmp_path, fill_recipe("recurrent-kif", model=model).text)
        assert (config.model.name, config.model.adapter.target_modules) == (model, None)


def test_a_file_that_is_there_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "kif.yaml"
    target.write_text("mine", encoding="utf-8")
    for arguments in (["kif"], ["kif", "kif.yaml"], ["kif", tmp_path]):
        refused(call("cp", *arguments), "kif.yaml: found a file", "--force")
    assert target.read_text("utf-8") == "mine"
    assert call("cp", "kif", "--force").exit_code == 0
    assert target.read_text("utf-8") == fill_recipe("kif").text
    assert [path.name for path in tmp_path.iterdir()] == ["kif.yaml"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["kilora"], "Did you mean 'kiflora'?"),
        (["Recurrent-KIFF"], "Did you mean 'recurrent-kif'?"),
        (["nothing like it"], "See 'kifuse ls recipes'"),
        (["kif", "--model", "t5-larg"], "Did you mean 't5-large'?"),
        (["kif", "--benchmark", "suprni"], "Did you mean 'superni'?"),
        (["kif", "--order", "7"], "expected one of 4, 5, 6 (long-sequence)."),
        (["kif", "--order", "3"], "standard-cl have an order 3"),
        (["kif", "--set", "method.gama=0.5"], "Did you mean 'method.gamma'?"),
        (["kif", "--set", "memory.share=0.5"], "--set memory.share"),
        (["kif", "--set", "method.gamma"], "expected KEY=VALUE"),
    ],
)
def test_what_cannot_be_copied_is_refused(tmp_path: Path, arguments: list[str], expected: str) -> None:
    name, *options = arguments
    refused(call("cp", name, tmp_path / "new.yaml", *options), expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("verb", ["run", "validate"])
def test_a_recipe_in_place_of_a_file_is_answered_with_how_to_get_the_file(verb: str, tmp_path: Path) -> None:
    refused(call(verb, "recurrent-kif"), "the name of a recipe", "kifuse cp recurrent-kif")


def test_a_file_may_have_the_name_of_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kif").write_text(fill_recipe("kif", benchmark="support-desk").text, encoding="utf-8")
    assert call("validate", "kif").exit_code == 0


def test_the_list_shows_each_row_with_its_command_and_its_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    text = call("ls", "recipes").output
    for _, row in ROWS:
        assert f" {row.arguments} " in text
    assert "72.29 / 12.89 / -3.04" in text
    assert "26.41 / ? / -18.6" in text
    assert text.index("Table I,") < text.index("Table IV") < text.index("Table 1,") < text.index("Table 2")


@pytest.mark.parametrize(
    "arguments", [["ls", "recipes"], ["cp", "--help"], ["cp", "recurrent-kif"]], ids=" ".join
)
def test_nothing_heavy_is_imported(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys, atexit\n"
        "atexit.register(lambda: print([m for m in ('torch', 'transformers') if m in sys.modules]))\n"
        "from kifuse.cli import main\nmain()"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"


def test_an_unknown_recipe_is_an_error_from_python_too() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'kif-m'"):
        fill_recipe("kif-n")
