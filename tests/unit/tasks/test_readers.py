from __future__ import annotations

import json
from pathlib import Path

import pytest

from kifuse.errors import DataError
from kifuse.tasks import Example, read_stream, read_task

PROMPT = "What is the topic? Choose one from the option. Option: World, Sports.\nSome text\n\nAnswer:"


def put(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def lines(*rows: object) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def long_sequence(tmp_path):
    root = tmp_path / "long"
    for name in ("agnews", "sst-2"):
        for split in ("train", "dev", "test"):
            put(root / split / f"{name}.json", [{"id": f"{split}1", "input": PROMPT, "output": "World"}])
    return root


@pytest.fixture
def cl_benchmark(tmp_path):
    root = tmp_path / "cl"
    for category, name in (("TC", "agnews"), ("COPA", "COPA")):
        put(root / category / name / "labels.json", ["World", "Sports"])
        for split in ("train", "dev", "test"):
            put(root / category / name / f"{split}.json", [{"sentence": "Some text", "label": "World"}])
    return root


@pytest.fixture
def superni(tmp_path):
    root = tmp_path / "ni"
    for name in ("task073_questions", "task1572_summary"):
        for split in ("train", "dev", "test"):
            rows = [{"id": "x1", "input": "Some text", "output": ["one", "two"]}]
            put(root / name / f"{split}.json", {"Definition": ["Do it."], "Instances": rows})
    return root


@pytest.fixture
def jsonl(tmp_path):
    root = tmp_path / "own"
    for name in ("first", "second"):
        for split in ("train", "test"):
            put(root / name / f"{split}.jsonl", lines({"input": f"Some {split} text", "output": "World"}))
    return root


LAYOUTS = {
    "long_sequence": (["agnews", "sst-2"], "train/agnews.json"),
    "cl_benchmark": (["COPA", "agnews"], "TC/agnews/train.json"),
    "superni": (["task073_questions", "task1572_summary"], "task1572_summary/train.json"),
    "jsonl": (["first", "second"], "first/train.jsonl"),
}


@pytest.fixture(params=LAYOUTS)
def layout(request):
    return request.param, request.getfixturevalue(request.param)


@pytest.fixture(params=["long_sequence", "cl_benchmark", "superni"])
def published(request):
    return request.param, request.getfixturevalue(request.param)


def test_the_layout_is_found_and_may_be_named(layout):
    name, root = layout
    stream = read_stream(root)
    assert [task.name for task in stream] == LAYOUTS[name][0]
    assert stream.name == root.name
    assert read_stream(root, layout=name) == stream


def test_an_order_picks_and_arranges_whatever_the_case(layout):
    name, root = layout
    first, second = LAYOUTS[name][0]
    assert [task.name for task in read_stream(root, [second.upper(), first])] == [second, first]
    assert [task.name for task in read_stream(root, [second])] == [second]
    assert read_task(root, second) == read_stream(root, [second]).tasks[0]


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["nothing-like-it"], "no task 'nothing-like-it', expected one of"),
        ([], "order of tasks is empty"),
        ("agnews", "expected a list of names"),
        ([7], "expected a list of names"),
        (["../agnews"], "is a path, expected a plain name"),
        (["..\\agnews"], "is a path, expected a plain name"),
        ([".."], "is a path, expected a plain name"),
        ([""], "expected a non-empty text"),
    ],
)
def test_a_wrong_order_is_refused(layout, order, message):
    with pytest.raises(DataError, match=message):
        read_stream(layout[1], order)


def test_a_misspelt_or_repeated_name_is_named(long_sequence):
    with pytest.raises(
        DataError, match=r"no task 'agnwes', expected one of agnews, sst-2. Did you mean 'agnews'"
    ):
        read_stream(long_sequence, ["agnwes"])
    with pytest.raises(DataError, match="names 'agnews' twice"):
        read_stream(long_sequence, ["agnews", "AGNEWS"])


@pytest.mark.parametrize("name", ["1572", "task1572", "073", "73", "task073"])
def test_a_superni_task_may_be_named_by_number(superni, name):
    assert int(name.removeprefix("task")) == int(read_task(superni, name).name[4:].partition("_")[0])


def test_a_number_is_the_whole_number(superni):
    with pytest.raises(DataError, match="no task '157'"):
        read_task(superni, "157")


def test_an_unknown_layout_and_a_missing_folder_are_named(jsonl, tmp_path):
    with pytest.raises(DataError, match=r"layout is 'jsonlines'.*Did you mean 'jsonl'"):
        read_stream(jsonl, layout="jsonlines")
    for layout in ("auto", "jsonl"):
        with pytest.raises(DataError, match=r"onw: no such file or folder. Did you mean 'own'"):
            read_stream(tmp_path / "onw", layout=layout)
    with pytest.raises(DataError, match=r"not a known layout.*These folders inside are: own"):
        read_stream(tmp_path)
    with pytest.raises(DataError, match="holds no task in the layout superni"):
        read_stream(jsonl, layout="superni")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"not a known layout, expected train/<task>.json"):
        read_stream(tmp_path / "empty")
    with pytest.raises(DataError, match=r"a file that ends in one of .jsonl, .*For this one: save it as CSV"):
        read_stream(put(tmp_path / "a.xlsx", "a,b"))


def test_a_task_folder_is_read_on_its_own(cl_benchmark, superni, jsonl):
    assert read_task(cl_benchmark / "TC" / "agnews") == read_task(cl_benchmark, "agnews")
    assert read_task(superni / "task073_questions") == read_task(superni, "073")
    assert read_task(jsonl / "first") == read_task(jsonl, "first")
    with pytest.raises(DataError, match=r"holds 2 tasks, expected one\. Name one of them: first, second"):
        read_task(jsonl)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"the file is empty, expected examples"),
        (" \n", r"the file is empty, expected examples"),
        ("[{]", r":1: not valid JSON"),
        ("{\n}", r"holds an object, expected a list of objects|'Definition' is missing"),
        ("[]", r"holds no rows|found a list"),
        ('["text"]', r"row 1: found text, expected an object|found a list"),
        ("[]".encode("utf-16-le"), r":1: holds zero bytes, as UTF-16 text without a byte order mark"),
        (b"[\n\xe9]", r":2: not UTF-8 text; save the file as UTF-8"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_a_malformed_list_names_file_and_row(published, content, message):
    name, root = published
    path = root / LAYOUTS[name][1]
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=rf"{path.name}.*({message})"):
        read_stream(root)


@pytest.fixture(params=["long_sequence", "cl_benchmark", "superni"])
def listed(request):
    """A folder, the file to spoil, and its wrapping."""
    root = request.getfixturevalue(request.param)
    path = root / LAYOUTS[request.param][1]
    wrap = (lambda rows: {"Definition": "Do.", "Instances": rows}) if request.param == "superni" else list
    keys = ("sentence", "label") if request.param == "cl_benchmark" else ("input", "output")
    good = {keys[0]: PROMPT, keys[1]: "World"}
    return root, path, lambda row: put(path, wrap([good, {**good, **row}])), keys, good


@pytest.mark.parametrize(
    ("value", "found"), [(3, r"a number \(3\)"), (None, "null"), (True, r"true or false"), ({}, "an object")]
)
def test_a_field_of_the_wrong_type_names_row_and_key(listed, value, found):
    root, path, spoil, keys, _ = listed
    for key in keys:
        spoil({key: value})
        with pytest.raises(
            DataError, match=rf"{path.name}.* row 2: '{key}' is {found}.*expected text in quotes"
        ):
            read_stream(root)


def test_a_missing_field_names_the_nearest(listed):
    root, path, _, keys, good = listed
    for key in keys:
        row = {name: value for name, value in good.items() if name != key} | {key[:-1] + "x": "World"}
        content: object = [row]
        put(path, {"Definition": "Do.", "Instances": content} if "ni" in path.parts else content)
        with pytest.raises(
            DataError, match=rf"row 1: the field '{key}' is missing.*Did you mean '{key[:-1]}x'"
        ):
            read_stream(root)


def test_half_a_surrogate_pair_is_refused(listed):
    root, _, spoil, keys, _ = listed
    spoil({keys[0]: "bad \ud83d text"})
    with pytest.raises(DataError, match=rf"row 2: '{keys[0]}' holds half a surrogate pair at character 5"):
        read_stream(root)


def test_test_must_be_there_and_dev_may_be_missing(published):
    name, root = published
    task = LAYOUTS[name][0][1]
    folder = {"long_sequence": root, "cl_benchmark": root / "TC" / "agnews", "superni": root / task}[name]
    file = f"{{}}/{task}.json" if name == "long_sequence" else "{}.json"
    (folder / file.format("dev")).unlink()
    assert read_task(root, task).dev == ()
    (folder / file.format("test")).unlink()
    with pytest.raises(DataError, match=r"test.*\.json: no such file"):
        read_task(root, task)


# long_sequence


def test_finished_prompts_are_parted_at_the_first_and_the_last_line(long_sequence):
    example = read_task(long_sequence, "agnews").train[0]
    assert (example.head, example.body, example.tail) == (
        PROMPT.split("\n")[0] + "\n",
        "Some text\n",
        "\nAnswer:",
    )
    assert example.id == "train1"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("no line break at all", ("", "no line break at all", "")),
        ("Head\nAnswer:", ("Head\n", "", "Answer:")),
        ("Head\nbody\nAnswer: \n", ("Head\n", "body", "\nAnswer: \n")),
        ("Head\r\nbody\r\nAnswer:", ("Head\r\n", "body", "\r\nAnswer:")),
        ("Head\nAnswer: not the cue\nmore", ("Head\n", "Answer: not the cue\nmore", "")),
        ("Head\nThe Answer:", ("Head\n", "The Answer:", "")),
    ],
)
def test_other_prompts_are_parted_without_loss(long_sequence, text, parts):
    put(long_sequence / "train" / "agnews.json", [{"input": text, "output": "free text"}])
    example = read_task(long_sequence, "agnews").train[0]
    assert (example.head, example.body, example.tail) == parts
    assert example.input == text


def test_prompts_without_options_are_free_text(long_sequence):
    for split in ("train", "dev", "test"):
        put(long_sequence / split / "agnews.json", [{"input": "Sum it up.\nA text", "output": "Short."}])
    task = read_task(long_sequence, "agnews")
    assert (task.labels, task.metric) == (None, "rouge_l")


def test_an_output_outside_the_options_is_refused_save_a_dev_pair_without_gold_label(long_sequence):
    row = {"input": PROMPT, "output": "-"}
    put(long_sequence / "dev" / "agnews.json", [row, row])
    task = read_task(long_sequence, "agnews")
    assert [example.target for example in task.dev] == ["-", "-"]
    assert task.labels == ("World", "Sports")
    assert task.warnings == (
        "Task 'agnews': 2 dev examples have the output '-' (no gold label), kept as published.",
    )
    put(long_sequence / "dev" / "agnews.json", [{"input": PROMPT, "output": "Sport"}])
    with pytest.raises(
        DataError, match=r"dev.agnews\.json: row 1: 'output' is 'Sport'.*Did you mean 'Sports'"
    ):
        read_task(long_sequence, "agnews")
    for split in ("train", "test"):
        put(long_sequence / "dev" / "agnews.json", [{"input": PROMPT, "output": "World"}])
        put(long_sequence / split / "agnews.json", [{"input": PROMPT, "output": "World"}, row])
        with pytest.raises(
            DataError, match=rf"{split}.agnews\.json: row 2: 'output' is '-', expected one of"
        ):
            read_task(long_sequence, "agnews")
        put(long_sequence / split / "agnews.json", [{"input": PROMPT, "output": "World"}])


# cl_benchmark


def test_the_prompt_of_a_category_is_that_of_the_papers(cl_benchmark):
    assert read_task(cl_benchmark, "agnews").train[0].input == (
        "What is the topic of the following paragraph? Choose one from the option.\n"
        "Option: World, Sports \nSome text\nAnswer:"
    )
    assert read_task(cl_benchmark, "COPA").train[0].input == "Some text\nAnswer:"


def test_an_unknown_category_names_the_known(cl_benchmark):
    (cl_benchmark / "COPA").rename(cl_benchmark / "COPPA")
    with pytest.raises(DataError, match=r"category 'COPPA' has no known instruction.*Did you mean 'COPA'"):
        read_task(cl_benchmark, "COPA")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "is an object, expected a list"),
        ([], "is an empty list"),
        (["a", 1], "entry 2 is a number"),
        (["a", "a"], "names 'a' twice"),
        (["World "], "'label' is 'World', expected one of the options World "),
    ],
)
def test_wrong_labels_are_refused(cl_benchmark, labels, message):
    put(cl_benchmark / "TC" / "agnews" / "labels.json", labels)
    with pytest.raises(DataError, match=message):
        read_task(cl_benchmark, "agnews")


def test_missing_labels_are_named(cl_benchmark):
    (cl_benchmark / "TC" / "agnews" / "labels.json").unlink()
    with pytest.raises(DataError, match=r"labels\.json: no such file"):
        read_task(cl_benchmark, "agnews")


def test_two_categories_with_one_task_name_are_refused(cl_benchmark):
    put(cl_benchmark / "SC" / "agnews" / "train.json", [])
    with pytest.raises(DataError, match=r"already a task of this name in .*SC.agnews"):
        read_stream(cl_benchmark)


# superni


def test_definition_input_and_references(superni):
    task = read_task(superni, "1572")
    assert task.train[0].input == "Definition: Do it.\n\nInput: Some text\nOutput:"
    assert task.train[0].references == ("one", "two")
    assert (task.labels, task.metric) == (None, "rouge_l")


def test_few_outputs_make_a_classification_scored_as_asked(superni):
    folder = superni / "task073_questions"
    for split, count in (("train", 30), ("dev", 2), ("test", 2)):
        rows = [{"input": f"text {i}", "output": "POS" if i % 2 else "NEG"} for i in range(count)]
        put(folder / f"{split}.json", {"Definition": "Tell.", "Instances": rows})
    task = read_task(folder)
    assert (task.labels, task.metric) == (("NEG", "POS"), "rouge_l")
    assert task.train[0].input == "Definition: Tell.\n\nOption: NEG, POS\n\nInput: text 0\nOutput:"
    assert read_task(folder, superni_metric="exact_match").metric == "exact_match"
    assert read_task(superni, "1572", superni_metric="exact_match").metric == "rouge_l"
    # An output that training never shows means that the set is not closed.
    put(folder / "test.json", {"Definition": "Tell.", "Instances": [{"input": "text", "output": "MIXED"}]})
    assert read_task(folder).labels is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"Definition": "Do."}, "'Instances' is missing"),
        ({"definition": "Do.", "Instances": []}, "'Definition' is missing.*Did you mean 'definition'"),
        ({"Definition": [], "Instances": []}, "'Definition' is a list"),
        ({"Definition": "Do.", "Instances": []}, "'Instances' holds no rows"),
        (
            {"Definition": "Do.", "Instances": [{"input": "a", "output": []}]},
            "row 1: 'output' is an empty list",
        ),
        (
            {"Definition": "Do.", "Instances": [{"input": "a", "output": ["b", 1]}]},
            "'output' entry 2 is a number",
        ),
        ({"Definition": "Do.", "Instances": [{"id": [], "input": "a", "output": "b"}]}, "'id' is a list"),
    ],
)
def test_wrong_superni_files_are_refused(superni, content, message):
    put(superni / "task073_questions" / "train.json", content)
    with pytest.raises(DataError, match=message):
        read_task(superni, "073")


def test_empty_outputs_are_kept_and_said(superni):
    rows = [{"input": "a", "output": [""]}, {"input": "b", "output": "x"}]
    put(superni / "task1572_summary" / "train.json", {"Definition": "Do.", "Instances": rows})
    task = read_task(superni, "1572")
    assert task.train[0].target == ""
    assert task.warnings == ("Task 'task1572_summary': 1 train outputs are empty, kept as published.",)


# jsonl


def test_plain_rows_keep_the_text_as_it_is(jsonl):
    task = read_task(jsonl, "first")
    assert task.train[0].input == "Some train text"
    assert (task.labels, task.metric, task.dev) == (None, "rouge_l", ())


def test_bom_crlf_blank_lines_and_unicode_are_accepted(jsonl):
    rows = '{"input": "Grüße\u2028東京 😀", "output": "Köln"}\r\n\r\n{"input": "b", "output": "c"}'
    (jsonl / "first" / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    train = read_task(jsonl, "first").train
    assert [example.input for example in train] == ["Grüße\u2028東京 😀", "b"]
    assert train[0].target == "Köln"


def test_rows_may_carry_instruction_options_ids_and_references(jsonl):
    row = {"id": 7, "instruction": "Pick.", "options": ["x", "y"], "input": "A text", "output": ["x", "y"]}
    for split in ("train", "test"):
        put(jsonl / "first" / f"{split}.jsonl", lines(row))
    task = read_task(jsonl, "first")
    assert task.train[0].input == "Pick.\nOption: x, y\nA text\nAnswer:"
    assert task.train[0].references == ("x", "y")
    assert task.train[0].id == "7"
    assert (task.labels, task.metric) == (("x", "y"), "exact_match")


def test_options_that_differ_by_row_are_checked_by_row(jsonl):
    rows = [
        {"input": "q", "options": ["a", "b"], "output": "a"},
        {"input": "r", "options": ["c"], "output": "c"},
    ]
    for split in ("train", "test"):
        put(jsonl / "first" / f"{split}.jsonl", lines(*rows))
    task = read_task(jsonl, "first")
    assert (task.labels, task.metric) == (None, "exact_match")
    assert [example.options for example in task.test] == [("a", "b"), ("c",)]
    assert task.comparison_why.startswith("the options of each row are its labels")
    assert [Example.from_state(example.state()) for example in task.test] == list(task.test)
    put(jsonl / "first" / "test.jsonl", lines(rows[0], {**rows[1], "output": "a"}))
    with pytest.raises(DataError, match=r"test\.jsonl:2: 'output' is 'a', expected one of the options c"):
        read_task(jsonl, "first")


def test_task_json_names_instruction_labels_and_metric(jsonl):
    settings = {"instruction": "Which queue?", "labels": ["World", "Sports"]}
    put(jsonl / "first" / "task.json", settings)
    task = read_task(jsonl, "first")
    assert task.train[0].input == "Which queue?\nSome train text\nAnswer:"
    assert (task.labels, task.metric) == (("World", "Sports"), "exact_match")
    put(
        jsonl / "first" / "task.json",
        {**settings, "list_labels": True, "metric": "rouge_l", "title": "Queue"},
    )
    task = read_task(jsonl, "first")
    assert task.train[0].input == "Which queue?\nOption: World, Sports\nSome train text\nAnswer:"
    assert task.metric == "rouge_l"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([], "found a list, expected an object"),
        ({"instructions": "x"}, "unknown key 'instructions'.*Did you mean 'instruction'"),
        ({"metric": "rougeL"}, "metric is 'rougeL'.*Did you mean 'rouge_l'"),
        ({"labels": "World"}, "'labels' is text, expected a list"),
        ({"instruction": 4}, r"'instruction' is a number \(4\)"),
        ({"list_labels": "yes"}, "'list_labels' is text, expected true or false"),
        ({"list_labels": True}, "'list_labels' is true without 'labels'"),
        ({"labels": ["Sports"]}, r"train\.jsonl:1: 'output' is 'World', expected one of the options Sports"),
    ],
)
def test_a_wrong_task_json_is_refused(jsonl, settings, message):
    put(jsonl / "first" / "task.json", settings)
    with pytest.raises(DataError, match=message):
        read_task(jsonl, "first")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"train\.jsonl: the file is empty"),
        ('{"input": "a", "output": "b"}\n\n{"input": "a"', r"train\.jsonl:3: not valid JSON"),
        ('{"input": "a", "output": "b"}\n[1]', r"train\.jsonl:2: found a list, expected an object"),
        ('{"inptu": "a", "output": "b"}', r":1: the field 'input' is missing.*Did you mean 'inptu'"),
        ('{"input": "a"}', r":1: the field 'output' is missing, expected text; found the fields: 'input'"),
        ('{"input": 5, "output": "b"}', r":1: 'input' is a number \(5\), expected text in quotes"),
        ('{"input": "a", "output": 5}', r":1: 'output' is a number \(5\), expected text in quotes"),
        ('{"input": " ", "output": "b"}', r":1: 'input' is empty, .*leave out the rows that have none"),
        ('{"input": "a", "output": ""}', r":1: 'output' is empty"),
        ('{"input": "a", "output": "b", "options": []}', r":1: 'options' is an empty list"),
        ('{"input": "a", "output": "b", "options": ["B"]}', r":1: 'output' is 'b'.*Did you mean 'B'"),
        ('{"input": "a", "output": "b", "task": "other"}', r":1: 'task' is 'other', expected 'first'"),
    ],
)
def test_a_malformed_line_names_file_line_and_key(jsonl, content, message):
    put(jsonl / "first" / "train.jsonl", content)
    with pytest.raises(DataError, match=message):
        read_task(jsonl, "first")


def test_one_file_is_one_task_or_several_by_name(tmp_path):
    plain = put(tmp_path / "own.jsonl", lines({"input": "a", "output": "b"}))
    task = read_task(plain)
    assert (task.name, len(task.train), task.test) == ("own", 1, ())
    assert task.warnings == ()  # what there is to know of any task is in its findings
    rows = [{"task": name, "input": "a", "output": "b"} for name in ("z", "a", "z")]
    mixed = put(tmp_path / "mixed.jsonl", lines(*rows))
    assert [(task.name, len(task.train)) for task in read_stream(mixed)] == [("z", 2), ("a", 1)]
    for wrong, message in (
        ({"input": "a", "output": "b"}, "'task' is missing"),
        ({**rows[0], "task": "../x"}, "path"),
    ):
        put(mixed, lines(rows[0], wrong))
        with pytest.raises(DataError, match=rf"mixed\.jsonl:2:.*{message}"):
            read_stream(mixed)


def test_a_folder_of_split_files_may_hold_several_tasks(tmp_path):
    for split in ("train", "test"):
        put(tmp_path / "s" / f"{split}.jsonl", lines(*({"task": t, "input": t, "output": "o"} for t in "ba")))
    assert [(t.name, len(t.train), len(t.test)) for t in read_stream(tmp_path / "s")] == [
        ("b", 1, 1),
        ("a", 1, 1),
    ]


def test_files_and_folders_side_by_side_must_differ_in_name(jsonl):
    put(jsonl / "third.jsonl", lines({"input": "a", "output": "b"}))
    assert [task.name for task in read_stream(jsonl)] == ["first", "second", "third"]
    put(jsonl / "first.jsonl", lines({"input": "a", "output": "b"}))
    with pytest.raises(DataError, match=r"already has a task 'first'"):
        read_stream(jsonl)


def test_a_task_needs_more_than_dev(tmp_path):
    put(tmp_path / "own" / "t" / "dev.jsonl", lines({"input": "a", "output": "b"}))
    with pytest.raises(DataError, match="task 't' has only dev examples"):
        read_stream(tmp_path / "own")


def chat(*turns: tuple[str, object]) -> str:
    return lines({"messages": [{"role": role, "content": content} for role, content in turns]})


def test_a_conversation_learns_its_last_answer(jsonl):
    put(
        jsonl / "first" / "train.jsonl",
        chat(("system", "Be brief."), ("user", "Hello?"), ("assistant", "Hi.")),
    )
    example = read_task(jsonl, "first").train[0]
    assert (example.head, example.body, example.tail) == ("Be brief.\n\n", "Hello?", "")
    assert example.target == "Hi."


def test_a_longer_conversation_becomes_a_transcript(jsonl):
    turns = [
        ("user", [{"type": "text", "text": "One"}]),
        ("assistant", "Two"),
        ("user", "Three"),
        ("assistant", "Four"),
    ]
    put(jsonl / "first" / "train.jsonl", chat(*turns))
    example = read_task(jsonl, "first").train[0]
    assert example.input == "User: One\nAssistant: Two\nUser: Three\nAssistant:"
    assert example.target == "Four"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lines({"messages": "hello"}), "'messages' is text, expected a list of at least two"),
        (chat(("user", "a")), "'messages' is a list of 1"),
        (
            chat(("assistant", "b"), ("user", "a")),
            "last of 'messages' has the role 'user', expected 'assistant'",
        ),
        (chat(("system", "b"), ("assistant", "a")), "no message of the role 'user'"),
        (chat(("usr", "b"), ("assistant", "a")), "'role' of message 1 is 'usr'.*Did you mean 'user'"),
        (chat(("user", "b"), ("assistant", "")), "'content' of message 2 is empty"),
        (chat(("user", "b"), ("assistant", None)), "'content' of message 2 is null"),
        (chat(("user", [{"type": "image"}]), ("assistant", "a")), "has a part that is not text"),
        (lines({"messages": [{"role": "user"}, {}]}), "message 1 has no 'content'"),
        (lines({"messages": ["hello", "you"]}), "message 1 is text, expected an object"),
    ],
)
def test_a_wrong_conversation_is_refused(jsonl, content, message):
    put(jsonl / "first" / "train.jsonl", content)
    with pytest.raises(DataError, match=rf"train\.jsonl:1: .*{message}"):
        read_task(jsonl, "first")
