"""A configuration is read with every problem named at its line, and written back unchanged."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kifuse.config import RunConfig, load_config, parse_overrides, to_yaml
from kifuse.errors import ConfigError

GOOD = """\
model:
  name: smollm2-135m
data:
  benchmark: support-desk
method:
  name: kif
output: runs/a
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def problems(folder: Path, text: str, **overrides: object) -> list[str]:
    """The lines of the one error that the text gives, without the folder."""
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, {key.replace("__", "."): value for key, value in overrides.items()})
    return str(caught.value).replace(f"{folder}/", "").splitlines()


def test_a_short_file_gets_the_papers_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD), {})
    assert config.model.adapter.rank == 8
    assert config.model.adapter.alpha == 32
    assert config.training.learning_rate == 3e-4
    assert config.training.batch_size == 8
    assert config.memory.share == 0.02
    assert (config.data.max_input, config.data.max_target) == (512, 128)
    assert config.output == Path("runs/a")
    assert config.method.settings == {}


def test_written_out_and_read_again_it_is_equal(tmp_path: Path) -> None:
    text = GOOD + "training: {learning_rate: 1.0e-5, threads: 2}\n"
    text = text.replace("  name: kif", "  name: kif\n  beta: 0.5").replace(
        "support-desk", "support-desk\n  order: [b, a]"
    )
    config = load_config(write(tmp_path, text), {})
    again = load_config(write(tmp_path, to_yaml(config)), {})
    assert again == config
    assert again.method.settings == {"beta": 0.5}
    assert again.data.order == ["b", "a"]


@pytest.mark.parametrize("text", ["1e-3", "'1e-3'", "0.001", "1.0e-3"])
def test_a_float_may_be_written_with_an_exponent(tmp_path: Path, text: str) -> None:
    config = load_config(write(tmp_path, GOOD + f"training:\n  learning_rate: {text}\n"), {})
    assert config.training.learning_rate == 0.001


def test_a_section_with_nothing_in_it_means_its_defaults(tmp_path: Path) -> None:
    text = GOOD.replace("smollm2-135m", "smollm2-135m\n  adapter:\n    # rank: 4")
    config = load_config(write(tmp_path, text + "training:\n  # epochs: 2\nmemory: null\n"), {})
    assert (config.training.epochs, config.model.adapter.rank, config.memory.share) == (10, 8, 0.02)


def test_anchors_and_merges_work_and_may_be_overridden(tmp_path: Path) -> None:
    text = GOOD + "training: &fast {epochs: 1, seed: 3}\nmemory:\n  share: 0.5\n"
    config = load_config(write(tmp_path, text), {})
    assert (config.training.epochs, config.training.seed) == (1, 3)
    text = GOOD.replace("  name: kif", "  <<: {beta: 0.1, name: replay}\n  name: kif")
    assert load_config(write(tmp_path, text), {}).method.settings == {"beta": 0.1}


def test_a_home_folder_is_expanded(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, GOOD), {"output": "~/runs"}).output == Path.home() / "runs"


def test_the_configuration_cannot_be_changed_later(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD), {})
    with pytest.raises(ValueError, match="frozen"):
        config.training.epochs = 3


CASES = {
    "no such tracker": (
        "training:\n  report_to: [wandbb]",
        "training.report_to",
        "found the list ['wandbb'], expected a list with any of 'tensorboard', 'wandb', 'trackio'",
    ),
    "unknown section": (
        "modle: {}\n",
        "run.yaml:8: modle: found the unknown key 'modle'",
        "Did you mean 'model'?",
    ),
    "unknown key": ("training:\n  epoch: 3\n", "run.yaml:9: training.epoch: found", "Did you mean 'epochs'?"),
    "wrong type": (
        "training:\n  epochs: many\n",
        "run.yaml:9: training.epochs: found 'many' (text)",
        "a whole number",
    ),
    "number as text": ("training:\n  epochs: '3'\n", "run.yaml:9: training.epochs", "without quotes"),
    "fraction for a count": (
        "training:\n  epochs: 2.5\n",
        "found 2.5, expected a whole number",
        "default (10)",
    ),
    "truth value for a count": (
        "training:\n  threads: yes\n",
        "found true (a truth value)",
        "a whole number",
    ),
    "truth value for a number": ("memory:\n  share: true\n", "found true", "a number above 0 and at most 1"),
    "number for a truth value": (
        "evaluation:\n  full_matrix: 1\n",
        "run.yaml:9: evaluation.full_matrix",
        "true or false",
    ),
    "out of range": (
        "memory:\n  share: 1.5\n",
        "run.yaml:9: memory.share: found 1.5",
        "above 0 and at most 1",
    ),
    "not finite": (
        "training:\n  learning_rate: .inf\n",
        "run.yaml:9: training.learning_rate",
        "a number above 0",
    ),
    "wrong choice": (
        "training:\n  scheduler: linaer\n",
        "one of 'linear', 'constant'",
        "Did you mean 'linear'?",
    ),
    "scalar for a section": ("training: 3\n", "run.yaml:8: training: found 3", "a section"),
    "list for a section": ("training: [3]\n", "run.yaml:8: training: found the list [3]", "a section"),
    "null for a number": (
        "training:\n  epochs:\n",
        "run.yaml:9: training.epochs: found nothing",
        "a whole number",
    ),
    "key twice": (
        "training:\n  seed: 1\n  seed: 2\n",
        "run.yaml:10: training.seed",
        "(the first is in line 9)",
    ),
    "section twice": ("output: b\n", "run.yaml:8: output", "(the first is in line 7)"),
    "number as a key": ("7: a\n", "run.yaml:8: 7: found the unknown key '7'", "one of the keys model, data"),
    "batch not divisible": (
        "training:\n  accumulation: 3\n",
        "run.yaml:9: training.accumulation: found 3",
        "divides training.batch_size (8)",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, case: str) -> None:
    added, place, expected = CASES[case]
    [line] = problems(tmp_path, GOOD + added)
    assert place in line
    assert expected in line


REPLACED = {
    "no model": (
        "model:\n  name: smollm2-135m\n",
        "",
        "run.yaml:1: model.name: found nothing",
        "Add the key 'name'",
    ),
    "no model name": (
        "  name: smollm2-135m",
        "  precision: fp32",
        "run.yaml:1: model.name: found nothing",
        "Add",
    ),
    "no output": ("output: runs/a\n", "", "run.yaml:1: output: found nothing", "Add the key 'output'"),
    "empty output": ("runs/a", "''", "run.yaml:7: output: found ''", "a path"),
    "number for output": ("runs/a", "5", "run.yaml:7: output: found 5", "a path"),
    "unknown method": ("name: kif", "name: kifflora", "run.yaml:6: method.name", "Did you mean 'kiflora'?"),
    "unknown method setting": (
        "name: kif",
        "name: kif\n  gama: 1",
        "run.yaml:7: method.gama",
        "Did you mean 'gamma'?",
    ),
    "method setting out of range": (
        "name: kif",
        "name: kif\n  gamma: 7",
        "run.yaml:7: method.gamma: found 7",
        "at most 1",
    ),
    "unknown benchmark": (
        "support-desk",
        "long-sequenc",
        "run.yaml:4: data.benchmark",
        "Did you mean 'long-sequence'?",
    ),
    "benchmark without data": (
        "support-desk",
        "long-sequence",
        "run.yaml:4: data.benchmark",
        "the key data.path",
    ),
    "unknown order": (
        "support-desk",
        "support-desk\n  order: 9",
        "run.yaml:5: data.order: found 9",
        "orders of support-desk: 1",
    ),
    "order by bare numbers": (
        "support-desk",
        "support-desk\n  order: [1572, 2]",
        "run.yaml:5: data.order",
        "in quotes",
    ),
    "no data": (
        "benchmark: support-desk",
        "max_input: 64",
        "run.yaml:3: data: found neither",
        "data.path (--data FOLDER)",
    ),
    "order number without benchmark": (
        "benchmark: support-desk",
        "path: x\n  order: 1",
        "run.yaml:5: data.order",
        "task names",
    ),
}


@pytest.mark.parametrize("case", REPLACED)
def test_a_mistake_in_a_needed_key_is_named_with_its_line(tmp_path: Path, case: str) -> None:
    old, new, place, expected = REPLACED[case]
    [line] = problems(tmp_path, GOOD.replace(old, new))
    assert place in line
    assert expected in line


def test_all_problems_come_at_once_in_the_order_of_their_lines(tmp_path: Path) -> None:
    text = (
        "modle: 1\n"
        + GOOD.replace("name: kif", "name: kif\n  beta: 2\n  foo: 1")
        + "training:\n  epochs: 0\n  seed: -1\n"
    )
    lines = problems(tmp_path, text, training__batch_size="x")
    keys = [line.split(": found")[0] for line in lines]
    assert keys == [
        "run.yaml:1: modle",
        "run.yaml:8: method.beta",
        "run.yaml:9: method.foo",
        "run.yaml:12: training.epochs",
        "run.yaml:13: training.seed",
        "--set training.batch_size",
    ]


MALFORMED = {
    "empty": ("", "run.yaml:1: found an empty file"),
    "only comments": ("# nothing\n", "run.yaml:1: found an empty file"),
    "a list": ("- a\n- b\n", "run.yaml:1: found the list ['a', 'b']"),
    "a word": ("hello\n", "run.yaml:1: found 'hello' (text)"),
    "open bracket": (GOOD + "training: [1, 2\n", "run.yaml:9: is not YAML"),
    "tab": (GOOD + "training:\n\tepochs: 3\n", "run.yaml:9: is not YAML"),
    "two colons": (GOOD + "training: a: b\n", "run.yaml:8: is not YAML"),
    "two documents": (GOOD + "---\na: 1\n", "run.yaml:8: is not YAML"),
    "python object": (GOOD + "training: !!python/object/apply:os.getcwd []\n", "run.yaml:8: "),
    "unknown alias": (GOOD + "training: *nowhere\n", "run.yaml:8: is not YAML"),
    "alias of itself": (GOOD + "training: &a\n  x: *a\n", "an alias contains itself"),
    "impossible date": (GOOD + "training:\n  seed: 2024-13-45\n", "run.yaml:9: is not YAML"),
    "control character": (GOOD + "a: \x07\n", "is not YAML"),
    "list as key": (GOOD + "[a, b]: 1\n", "run.yaml:8: is not YAML: a key must be plain text"),
    "nested too deep": ("a: " + "[" * 1500, "nested too deep"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_what_is_no_configuration_is_refused_with_its_line(tmp_path: Path, case: str) -> None:
    text, expected = MALFORMED[case]
    assert expected in "\n".join(problems(tmp_path, text))


def test_a_file_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    write(tmp_path, GOOD)
    with pytest.raises(ConfigError, match=r"ran\.yaml: found no such file.*Did you mean 'run\.yaml'\?"):
        load_config(tmp_path / "ran.yaml", {})


def test_a_folder_and_a_binary_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found a folder"):
        load_config(tmp_path, {})
    (tmp_path / "run.yaml").write_bytes(b"model: \xff\xfe")
    with pytest.raises(ConfigError, match="byte 7 is not UTF-8"):
        load_config(tmp_path / "run.yaml", {})


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())
    assert load_config(tmp_path / "run.yaml", {}).method.name == "kif"


def test_overrides_are_read_as_yaml_and_win(tmp_path: Path) -> None:
    settings = ["training.epochs=2", "model.adapter.target_modules=[q, v]", "training.learning_rate=1e-2"]
    config = load_config(write(tmp_path, GOOD + "training: {epochs: 5}\n"), parse_overrides(settings))
    assert config.training.epochs == 2
    assert config.training.learning_rate == 0.01
    assert config.model.adapter.target_modules == ["q", "v"]


def test_an_override_may_repair_a_wrong_section(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD + "training: 3\n"), {"training.epochs": 2})
    assert config.training.epochs == 2


def test_a_wrong_override_is_named_as_such(tmp_path: Path) -> None:
    [line] = problems(tmp_path, GOOD, training__epochs=0)
    assert line.startswith("--set training.epochs: found 0, expected a whole number of at least 1 and at")
    [line] = problems(tmp_path, GOOD, training__batch_size=10**60)
    assert "at most 1000000000" in line
    [line] = problems(tmp_path, GOOD, training__epochs=1_000_000)
    assert "at least 1 and at most 10000" in line


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("training.epochs", "expected KEY=VALUE"),
        ("=3", "expected KEY=VALUE"),
        ("training..epochs=3", "expected KEY=VALUE"),
        ("training.epochs=[1", "expected a YAML value"),
    ],
)
def test_a_setting_that_cannot_be_read_is_refused(setting: str, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        parse_overrides([setting])


def test_a_setting_given_twice_is_refused() -> None:
    with pytest.raises(ConfigError, match="a second time"):
        parse_overrides(["training.epochs=1", "training.epochs=2"])


def test_data_that_is_not_there_is_refused_only_when_files_are_checked(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD.replace("benchmark: support-desk", "path: /nowhere/at/all"))
    assert load_config(path, {}).data.path == Path("/nowhere/at/all")
    with pytest.raises(ConfigError, match=r"run\.yaml:4: data\.path: found '/nowhere/at/all' .*not there"):
        load_config(path, {}, check_files=True)


def test_every_key_says_what_it_means() -> None:
    def silent(model: type, prefix: str = "") -> list[str]:
        found = []
        for name, field in model.model_fields.items():
            found += [] if field.description else [prefix + name]
            inner = field.annotation
            found += silent(inner, f"{prefix}{name}.") if hasattr(inner, "model_fields") else []
        return found

    assert silent(RunConfig) == []


def test_the_resolved_configuration_is_plain_yaml(tmp_path: Path) -> None:
    text = to_yaml(load_config(write(tmp_path, GOOD), {}))
    assert list(yaml.safe_load(text)) == [
        "model",
        "data",
        "method",
        "memory",
        "training",
        "evaluation",
        "watch",
        "record",
        "output",
    ]
    assert "!!" not in text
