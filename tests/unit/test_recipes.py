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
ALL_ROWS = [(paper, row) for paper in papers().values() for row in paper.rows]
ROWS = [(paper, row) for paper, row in ALL_ROWS if row.recipe is not None]

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

# the figures of both papers once more, from their tables: by table, benchmark and row
FIGURES = {
    ("kif", "Table I", "superni"): """
        SeqLoRA 6.43 1.58 -30.94 | IncLoRA 19.12 2.03 -31.24 | ProgPrompt 3.34 5.29 -33.18
        EWC 17.46 4.20 -28.61 | L2P 12.73 1.14 -7.95 | LFPT5 24.76 7.46 -24.41 | O-LoRA 25.89 8.14 -24.59
        KIF 26.41 11.78 -18.55 | KIFLoRA 27.43 11.02 -16.91 | Replay 35.37 2.35 -15.79 | SAPT 51.54 8.88 -0.57
        KIF-M 52.12 11.13 -1.31 | KIFLoRA-M 53.01 11.21 -0.81""",
    ("kif", "Table I", "long-sequence"): """
        SeqLoRA 9.72 6.81 -73.37 | IncLoRA 62.50 2.62 -15.34 | ProgPrompt 7.98 6.63 -66.71
        EWC 45.45 3.73 -25.93 | L2P 57.98 8.36 -16.63 | LFPT5 67.01 9.48 -12.80 | O-LoRA 69.24 10.15 -4.05
        KIF 70.71 11.80 -3.67 | KIFLoRA 72.29 12.89 -3.04 | Replay 70.98 3.28 -15.42 | SAPT 82.02 9.86 -1.25
        KIF-M 84.21 12.32 -1.08 | KIFLoRA-M 84.36 11.71 -0.98""",
    ("kif", "Table IV (importance)", "long-sequence"): """
        vanilla 54.10 3.32 -29.63 | sensitivity_alone 70.48 10.39 -3.81 | first_order 68.82 10.80 -6.22
        KIFLoRA 72.29 12.89 -2.04""",
    ("kif", "Table V (fusion)", "long-sequence"): """
        vanilla 54.10 3.32 -29.63 | weight_ensemble 63.28 7.71 -11.82 | EMA 62.76 8.23 -9.80
        KIFLoRA 72.29 12.89 -3.04""",
    ("kif", "Table VI (memory size)", "long-sequence"): """
        Replay_2% 71.2 | Replay_5% 72.4 | Replay_10% 73.8 | Replay_50% 76.1
        KIF-M_2% 74.2 | KIF-M_5% 75.1 | KIF-M_10% 75.7 | KIF-M_50% 79.2
        KIFLoRA-M_2% 74.3 | KIFLoRA-M_5% 75.4 | KIFLoRA-M_10% 76.2 | KIFLoRA-M_50% 79.8""",
    ("recurrent-kif", "Table 1", "standard-cl"): """
        SeqLoRA 43.7 -50.4 | IncLoRA 66.4 -20.0 | LoRAReplay 68.8 -11.7 | EWC 50.3 | L2P 60.7 | LFPT5 72.7
        MoELoRA 54.1 | O-LoRA 75.8 -3.8 | TaSL 76.3 -4.0 | VR-MCL 76.0 -3.7 | MIGU 76.6
        Recurrent-KIF 78.4 -2.8 | MTL 80.3""",
    ("recurrent-kif", "Table 1", "long-sequence"): """
        SeqLoRA 11.6 -73.4 | IncLoRA 61.2 -26.7 | LoRAReplay 70.9 -15.4 | EWC 45.1 | L2P 56.1 -16.3
        LFPT5 69.2 -12.8 | MoELoRA 27.6 | O-LoRA 69.6 -4.1 | TaSL 74.4 -5.3 | VR-MCL 74.8 -4.9 | MIGU 76.5
        Recurrent-KIF 77.8 -3.6 | MTL 81.8 | SAPT-LoRA 82.0 -1.3""",
    ("recurrent-kif", "Table 2 (ablations)", "long-sequence"): """
        Recurrent-KIF 77.9 -3.4 | -_DIE 74.8 -4.8 | -_KI 52.3 -21.5 | +_GM 72.1 -11.2 | +_Adaptive 76.1 -4.1
        -_Share 75.8 -4.3""",
    ("recurrent-kif", "Table 3 (SuperNI)", "superni"): """
        Replay 35.4 -15.8 | O-LoRA 25.9 -24.6 | TaSL 41.3 -12.7 | VR-MCL 40.5 -10.9 | Recurrent-KIF 43.3 -8.4
        MTL 50.7""",
    ("recurrent-kif", "Table 4 (memory size)", "long-sequence"): """
        LoRAReplay_2% 71.2 | LoRAReplay_5% 72.4 | LoRAReplay_10% 73.8 | LoRAReplay_50% 76.1
        Recurrent-KIF_2% 77.9 | Recurrent-KIF_5% 78.7 | Recurrent-KIF_10% 79.8 | Recurrent-KIF_50% 80.5""",
    ("recurrent-kif", "Table 5 (adapted modules)", "long-sequence"): """
        q_v 77.9 -3.4 | q_k_v_o 77.7 -3.3 | FFN 77.7 -2.5 | attention_and_FFN 78.0 -3.2""",
    ("recurrent-kif", "Table 6 (smoothing)", "long-sequence"): """
        alpha_0.35 77.7 -3.4 | alpha_0.55 78.1 -2.8 | alpha_0.85 77.9 -3.4 | alpha_0.95 77.8 -2.7""",
    ("recurrent-kif", "Table 7 (threshold)", "long-sequence"): """
        top_1% 77.4 -3.3 | top_10% 77.8 -3.1 | top_20% 77.9 -3.4 | top_50% 77.6 -2.4""",
    ("recurrent-kif", "Table 8 (inner and outer steps)", "long-sequence"): """
        Q_4,_M_1 76.7 -4.4 | Q_8,_M_1 77.7 -3.2 | Q_8,_M_4 77.9 -3.4 | Q_16,_M_4 76.8 -5.4""",
    ("recurrent-kif", "Table 10 (importance)", "long-sequence"): """
        importance_by_the_gradient 74.5 -5.2 | no_smoothing 75.9 -4.7 | Recurrent-KIF 77.9 -3.4""",
    ("recurrent-kif", "Fig. 3 (other models)", "long-sequence"): "Recurrent-KIF 78.2 | VR-MCL 75.6",
    ("o-lora", "Main results", "standard-cl"): "O-LoRA 75.8",
    ("o-lora", "Main results", "long-sequence"): "O-LoRA 69.6",
}
METRICS = {"kif": 3, "recurrent-kif": 2, "o-lora": 1}


def figures() -> dict[tuple[str, str, str, str], tuple[float | None, ...]]:
    """The figures above, one entry for each row and benchmark."""
    found = {}
    for (paper, table, benchmark), text in FIGURES.items():
        for cell in text.replace("\n", "|").split("|"):
            if cell.strip():
                name, *values = cell.split()
                known = [float(value) for value in values]
                padded = (*known, *[None] * (METRICS[paper] - len(known)))
                found[paper, table, name.replace("_", " "), benchmark] = padded
    return found


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
    recipes = {name for name in NAMES if catalog.recipe_paper(name).name == paper}
    for name in recipes - {"rkif-published-code"}:
        for key, value in flat(yaml.safe_load(read_recipe(name))).items():
            if key.partition(".")[0] not in own and key not in ("data.benchmark", "data.order"):
                alike.setdefault(key, set()).add(json.dumps(value))
    assert {key: values for key, values in alike.items() if len(values) > 1} == {}


def test_only_methods_that_replay_have_a_memory() -> None:
    for name in NAMES:
        section = yaml.safe_load(read_recipe(name)).get("memory")
        uses = method_of(name).old_data in ("mixed", "steps")
        known = ({"share": 0.02, "selection": "balanced"}, {"share": 0.02, "source": "generated"})
        assert (section in known) if uses else section is None, name


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
    # shares of the first tasks: 0.001, 0.071, 0.141
    assert method_of("osf").growth == 0.07


def test_the_published_figures_are_those_of_the_papers() -> None:
    found = {
        (paper.name, row.table, row.name, benchmark): values
        for paper, row in ALL_ROWS
        for benchmark, values in row.published.items()
    }
    assert found == figures()


@pytest.mark.parametrize(("paper", "row"), ROWS, ids=lambda each: getattr(each, "arguments", None))
def test_what_a_row_changes_is_a_setting_that_is_right(tmp_path: Path, paper: Any, row: Any) -> None:
    config = loaded(tmp_path, fill_recipe(row.recipe, model=row.model, settings=row.settings).text)
    values = flat(config)
    assert {key: values[key] for key in row.settings} == dict(row.settings)
    assert (paper, row) in catalog.rows_of(row.recipe)


def test_the_head_names_the_rows_that_the_file_gives() -> None:
    plain = fill_recipe("recurrent-kif", benchmark="long-sequence").text
    assert "Table 1, Recurrent-KIF; published for t5-large: OP 77.8, BWT -3.6" in plain
    assert "Table 4 (memory size), Recurrent-KIF 2%; published for t5-large: OP 77.9" in plain
    assert "Recurrent-KIF 10%" not in plain
    assert "llama" not in plain
    more = fill_recipe("recurrent-kif", benchmark="long-sequence", settings={"memory.share": 0.1}).text
    assert "Table 4 (memory size), Recurrent-KIF 10%; published for t5-large: OP 79.8" in more
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


@pytest.mark.usefixtures("no_bundled_model")
def test_a_copied_file_is_valid_as_it_is(tmp_path: Path) -> None:
    target, data = tmp_path / "mine.yaml", write_published(tmp_path / "my data")
    result = call("cp", "recurrent-kif", target, "--data", data)
    assert result.exit_code == 0, result.output
    assert f"kifuse validate {target}" in result.output
    assert f"kifuse run {target}" in result.output
    checked = call("validate", target)
    assert checked.exit_code == 0, checked.output
    assert "google-t5/t5-large" in checked.output


@pytest.mark.usefixtures("no_bundled_model")
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


@pytest.mark.usefixtures("no_bundled_model")
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
    assert "26.41 / 11.78 / -18.55" in text
    assert "51.54 / 8.88 / -0.57" in text  # a system that kifuse does not have has its figures beside
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
