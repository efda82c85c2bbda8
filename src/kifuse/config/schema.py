"""The schema of a run's configuration: every key with its type, range, default and meaning.

A description names the paper's symbol if there is one, the unit, and the effect of a larger value.
The defaults are those that the papers use for T5 (arXiv 2408.05200 and 2502.17510).
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, field_validator

from kifuse.config.values import MOST, Float, Folder, Section, Text
from kifuse.config.watch import WatchConfig


class AdapterConfig(Section):
    """The part that is trained: by default LoRA (KIF Eq. 2) with W0 frozen; or the model's own weights."""

    kind: Literal["lora", "rslora", "dora", "ia3", "full", "osf"] = Field(
        default="lora",
        description="lora; rslora: scaled by alpha/sqrt(r); dora: with magnitudes; ia3: scaling vectors; "
        "full: the model's own weights; osf: their smaller singular directions, for the method osf.",
    )
    rank: int = Field(
        default=8,
        ge=1,
        le=2**16,
        description=("r: the rows of A and columns of B. Larger: more capacity and memory. LoRA kinds only."),
    )
    alpha: int = Field(
        default=32,
        ge=1,
        le=MOST,
        description="alpha: the update is scaled by alpha/r. Larger: bigger steps. LoRA kinds only.",
    )
    dropout: Float = Field(
        default=0.05,
        ge=0,
        lt=1,
        description="Share of the adapter's inputs that is set to zero in training. LoRA kinds only.",
    )
    preserve: Float = Field(
        default=0.5,
        gt=0,
        lt=1,
        description="Share of each matrix's singular directions that is frozen, the largest ones. Larger: "
        "less forgetting, less capacity. Kind osf only.",
    )
    target_modules: list[Text] | None = Field(
        default=None,
        description="Names of the layers to adapt; null: the query and value projections, for ia3 the "
        "layers of its paper, for full the whole model.",
    )

    from_: Folder | None = Field(
        default=None,
        alias="from",
        description="The folder of a LoRA adapter made elsewhere that training starts from, as what was "
        "learned before the first task. Its kind, rank, alpha and layers are used.",
    )

    @property
    def summary(self) -> str:
        """Say in a few words what is trained."""
        if self.kind == "full":
            chosen = self.target_modules or ["all weights"]
            return f"full fine-tuning of {', '.join(chosen)}"
        if self.kind == "ia3":
            return "(IA)3 adapters"
        if self.kind == "osf":
            return f"orthogonal subspaces, {self.preserve:.0%} of the singular directions frozen"
        kinds = {"lora": "", "rslora": "rank-stabilised ", "dora": "DoRA "}
        return f"{kinds[self.kind]}adapters of rank {self.rank}"


class ModelConfig(Section):
    """The language model and how it is adapted."""

    name: Text = Field(description="A name of 'kifuse ls models', a Hugging Face hub id, or a folder.")
    adapter: AdapterConfig = Field(default_factory=AdapterConfig, description="What is trained.")
    quantization: Literal["none", "8bit", "4bit"] = Field(
        default="none",
        description="Quantise the frozen linear layers with bitsandbytes: less memory, other results.",
    )
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        default="auto",
        description=(
            "Number format of training; auto: bf16 if the hardware computes it, else fp16 on a GPU and "
            "fp32 on a CPU."
        ),
    )
    trust_remote_code: bool = Field(
        default=False, description="Whether Python code that comes with the model may run on this machine."
    )

    @field_validator("quantization")
    @classmethod
    def _quantised_weights_stay_frozen(cls, value: str, info: ValidationInfo) -> str:
        adapter = info.data.get("adapter")
        if value != "none" and adapter is not None and adapter.kind in ("full", "osf"):
            raise ValueError(
                f"'none' with model.adapter.kind {adapter.kind!r}, as quantised weights cannot be trained"
            )
        return value


class DataConfig(Section):
    """The stream of tasks, learned in this order."""

    benchmark: Text | None = Field(default=None, description="A name of 'kifuse ls benchmarks'.")
    order: Annotated[int, Field(ge=1)] | list[Text] | None = Field(
        default=None,
        description="The number of the benchmark's task order, or the names of the tasks in order.",
    )
    path: Folder | None = Field(
        default=None,
        description="The folder or file that holds the data, or a data set of the hub: owner/name, or "
        "hub:owner/name:configuration.",
    )
    layout: Literal["auto", "long_sequence", "cl_benchmark", "superni", "jsonl"] = Field(
        default="auto",
        description="Layout of the folder; jsonl: your own data, in any format; auto: found from its files.",
    )
    train_examples: int | None = Field(
        default=None,
        ge=1,
        description="Training examples kept of each task; null: all. Larger: slower, better.",
    )
    dev_examples: int | None = Field(
        default=None, ge=1, description="Validation examples kept of each task; null: all."
    )
    test_examples: int | None = Field(
        default=None,
        ge=1,
        description="Test examples kept of each task; null: all. Larger: slower, more exact scores.",
    )
    hold_out: Float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of the training examples, at most 200 of them, that becomes the validation "
        "examples of a task that has none. 0: none.",
    )
    scored_on: Literal["test", "dev"] = Field(
        default="test",
        description="The examples that tasks are scored on; dev: the validation examples, for choosing "
        "settings. No test example is then used.",
    )
    max_input: int = Field(
        default=512,
        ge=8,
        le=MOST,
        description="The most tokens of an input; a longer one loses the middle of its text.",
    )
    max_target: int = Field(
        default=128, ge=1, le=MOST, description="The most tokens of a target, with its end-of-text token."
    )
    chat_template: Literal["auto"] | bool = Field(
        default="auto",
        description="Whether inputs are written with the tokenizer's chat template; auto: yes if it has "
        "one, as servers of the model do, but no for the named benchmarks, which keep the "
        "papers' prompts.",
    )
    train_on: Literal["last", "all"] = Field(
        default="last",
        description="Which of the assistant's answers in a conversation are learned: the last one, or all.",
    )
    format: Text | None = Field(
        default=None,
        description="Format of the rows of your own data, such as alpaca; null: found from their fields.",
    )
    columns: dict[Text, Text] | None = Field(
        default=None,
        description="The column of the data for each field, such as {input: question, output: answer}; "
        "null: columns with known names are used.",
    )
    metric: Text | None = Field(
        default=None,
        description="Metric of every task in place of its own: a name of 'kifuse ls metrics', or "
        "module:function, your own function in the working directory; null: each task's own "
        "metric.",
    )
    superni_metric: Literal[
        "rouge_l", "exact_match", "superni_rouge_l", "superni_rouge_l_xlingual", "superni_exact_match"
    ] = Field(
        default="rouge_l",
        description="Metric of SuperNI's tasks. exact_match: for classification tasks only, as in KIF; "
        "superni_...: exactly SuperNI's own evaluation, as in SAPT; xlingual: for tasks that "
        "are not in English.",
    )
    own_metrics: list[Text] = Field(
        default_factory=list,
        description="Your own functions, each module:function, that a task.json may name as its metric. "
        "Without this list no code that a data folder names is run.",
    )


class MethodConfig(Section):
    """The method's name; every other key of the section is a setting of that method."""

    model_config = ConfigDict(extra="allow")

    name: Text = Field(description="A name of 'kifuse ls methods'.")

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the method that were given, by name."""
        return dict(self.model_extra or {})


class MemoryConfig(Section):
    """The buffer of earlier tasks' training examples, for methods that replay them."""

    share: Float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="Share of each task's training examples that is kept. Larger: less forgetting.",
    )
    per_task: int | None = Field(
        default=None, ge=1, description="Number of examples kept of each task, in place of share."
    )
    selection: Literal["balanced", "random"] = Field(
        default="balanced", description="balanced: the same number of each label; random: any examples."
    )
    source: Literal["real", "generated", "generic"] = Field(
        default="real",
        description="real: examples of the tasks; generated: examples that the model writes, as in "
        "generated-replay; generic: rows of memory.generic. The last two keep no real example.",
    )
    samples: Folder | None = Field(
        default=None,
        description="With source generated: a JSON Lines file of samples that are kept in place of those "
        "that the model would write; each has a task, an input and an output.",
    )
    generic: Folder | None = Field(
        default=None,
        description="File or folder of general data, in any format of a task: kept with source generic, "
        "mixed in with generic_share.",
    )
    generic_share: Float = Field(
        default=0.0,
        ge=0,
        lt=1,
        description="Share of general data in the training examples of each task, for any method. 0: none.",
    )


class TrainingConfig(Section):
    """How each task is trained."""

    learning_rate: Float = Field(
        default=3e-4, gt=0, description="beta_in: AdamW's learning rate. Larger: faster, more forgetting."
    )
    epochs: int = Field(
        default=10, ge=1, le=10_000, description="How often each task's training examples are gone through."
    )
    batch_size: int = Field(
        default=8, ge=1, le=MOST, description="Examples of one optimizer step, over all devices together."
    )
    accumulation: int = Field(
        default=1,
        ge=1,
        le=MOST,
        description="Parts that a device splits its batch into. Larger: less memory, same result.",
    )
    gradient_checkpointing: bool = Field(
        default=False,
        description="Keep only the inputs of each layer and compute the rest again in the backward pass: "
        "less memory, slower, same result.",
    )
    scheduler: Literal["linear", "constant"] = Field(
        default="linear",
        description="The learning rate over a task's steps; linear: it falls to 0; constant: it stays the "
        "same.",
    )
    warmup_steps: int = Field(
        default=0, ge=0, le=MOST, description="Optimizer steps in which the learning rate rises from 0."
    )
    weight_decay: Float = Field(
        default=0.0, ge=0, description="AdamW's weight decay. Larger: smaller weights."
    )
    max_grad_norm: Float = Field(
        default=1.0,
        ge=0,
        description="Largest norm of the gradient; a larger one is scaled down. 0: no limit.",
    )
    checkpoint_minutes: Float = Field(
        default=5.0,
        ge=0,
        description="Minutes between two saves in the middle of a task. 0: save at every step.",
    )
    max_bad_steps: int = Field(
        default=10,
        ge=1,
        description="Training stops after this many steps in a row whose loss or gradient is not finite.",
    )
    report_to: list[Literal["tensorboard", "wandb", "trackio"]] = Field(
        default=[],
        description="Trackers that get the losses, the method's numbers and the scores during the run.",
    )
    seed: int = Field(
        default=0, ge=0, le=2**32 - 1, description="Seed of data order, subsets, memory and weights."
    )
    threads: int | None = Field(
        default=None, ge=1, le=4096, description="CPU threads that torch uses; null: torch chooses."
    )


class EvaluationConfig(Section):
    """How the tasks are scored after each task learned."""

    full_matrix: bool = Field(
        default=False,
        description=(
            "Score all learned tasks after each task, not only the 3K-2 scores that the metrics need. Slower."
        ),
    )
    max_new_tokens: int | None = Field(
        default=128,
        ge=1,
        le=MOST,
        description="The most tokens that are generated for an answer; null: as many as data.max_target.",
    )
    batch_tokens: int = Field(
        default=8192,
        ge=1,
        le=MOST,
        description="The most tokens of a batch of answers, with its prompts. Larger: faster, more memory.",
    )


class RecordConfig(Section):
    """Measurements that are only recorded and change no result."""

    probe_importance: list[Text] = Field(
        default_factory=list,
        description="Tasks whose importance is measured after they are learned, and again after each later "
        "task.",
    )
    probe_examples: int = Field(
        default=64,
        ge=1,
        le=MOST,
        description="Training examples of each such task that its importance is measured on.",
    )
    probe_stages: int = Field(
        default=0, ge=0, le=1000, description="Further measurements within each later task."
    )


class RunConfig(Section):
    """The whole configuration of a run; see the sections."""

    model: ModelConfig = Field(description="The language model and its adapter.")
    data: DataConfig = Field(default_factory=DataConfig, description="The stream of tasks.")
    method: MethodConfig = Field(description="The method against forgetting, and its settings.")
    memory: MemoryConfig = Field(default_factory=MemoryConfig, description="The buffer of earlier examples.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="How each task is trained.")
    evaluation: EvaluationConfig = Field(
        default_factory=EvaluationConfig, description="How tasks are scored."
    )
    watch: WatchConfig = Field(
        default_factory=WatchConfig, description="Tasks that are scored and never trained on."
    )
    record: RecordConfig = Field(
        default_factory=RecordConfig, description="Measurements that are only recorded."
    )
    output: Folder = Field(description="The folder that the run writes to.")
