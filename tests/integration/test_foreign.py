"""Folders from elsewhere: nothing that they hold is run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from kifuse import ContinualLearner, RunRecord, Task
from kifuse.errors import ModelError
from kifuse.models.loading import load_backbone
from tests.learners import METHOD, settings_of

pytestmark = pytest.mark.usefixtures("quick")


def test_code_beside_the_model_runs_only_if_the_caller_says_so(
    tiny_folder_llama: Path, tiny_stream: Path, tasks: list[Task], tmp_path: Path
):
    model, trace = shutil.copytree(tiny_folder_llama, tmp_path / "model"), tmp_path / "ran"
    settings = settings_of(model, tiny_stream)
    learner = ContinualLearner(str(model), METHOD, tmp_path / "desk", settings=settings, progress=False)
    learner.learn(tasks[0])
    record = RunRecord.load(learner.folder)
    record.config["model"]["trust_remote_code"] = True
    record.save(learner.folder)
    (model / "foreign.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n"
        "from transformers import LlamaConfig, LlamaForCausalLM\n"
        "class OwnConfig(LlamaConfig):\n    model_type = 'own'\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n",
        encoding="utf-8",
    )
    config = json.loads((model / "config.json").read_text("utf-8"))
    config |= {
        "model_type": "own",
        "auto_map": {"AutoConfig": "foreign.OwnConfig", "AutoModelForCausalLM": "foreign.OwnModel"},
    }
    (model / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ModelError, match="comes with Python code"):
        ContinualLearner.load(learner.folder, progress=False)
    assert not trace.exists()
    load_backbone(str(model), trust_remote_code=True)
    assert trace.exists(), "it would have run"
