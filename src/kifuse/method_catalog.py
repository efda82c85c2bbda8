"""Every method by the name that users type, with the facts that are known without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

DataClass = Literal[
    "replay-free", "real replay", "generated replay", "generic replay", "task id given", "all data"
]
"""The data that a method is given besides the task's own data, in the words of tables and records.

Real replay keeps examples of earlier tasks, generated replay has a model write them, and generic replay keeps
general data instead of them. A method that is told the task of a test example may choose among adapters. All
data at once is the upper bound.
"""

_KIF = "arXiv 2408.05200"
_RECURRENT_KIF = "arXiv 2502.17510"


def class_with(data_class: DataClass, source: Literal["real", "generated", "generic"]) -> DataClass:
    """Return a method's data class for this source of memory; the source matters only for real replay."""
    if data_class != "real replay" or source == "real":
        return data_class
    return "generated replay" if source == "generated" else "generic replay"


@dataclass(frozen=True)
class Entry:
    """The facts about a method that are known without importing it.

    Attributes:
        target: The place of its class, as ``module:Class``; the class's init fields are the settings.
        summary: One line for the list of methods.
        data_class: The data that it trains on besides the task's own, with its preset settings.
        preset: Settings that differ from the class's defaults under this name; the user's settings win.
        paper: The paper that published the method; empty for a baseline.
    """

    target: str
    summary: str
    data_class: DataClass
    preset: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""


_KIFLORA = {"units": "rank", "order": "second", "fusion": "adaptive", "orthogonality": 0.1}

METHODS: dict[str, Entry] = {
    "sequential": Entry(
        target="kifuse.methods.sequential:Sequential",
        summary="One adapter trained on task after task, with nothing against forgetting: the lower bound.",
        data_class="replay-free",
    ),
    "joint": Entry(
        target="kifuse.methods.joint:Joint",
        summary="One adapter trained on all tasks at once: the upper bound.",
        data_class="all data",
    ),
    "replay": Entry(
        target="kifuse.methods.replay:Replay",
        summary="Trains on the task together with the kept examples of earlier tasks.",
        data_class="real replay",
    ),
    "kif": Entry(
        target="kifuse.methods.kif:KIF",
        summary="Finds the skill units that matter to each task, and fuses the old and new adapter after it.",
        data_class="replay-free",
        paper=_KIF,
    ),
    "kiflora": Entry(
        target="kifuse.methods.kif:KIF",
        summary="KIF on single LoRA ranks, with second-order importance and adaptive fusion.",
        data_class="replay-free",
        preset=_KIFLORA,
        paper=_KIF,
    ),
    "kif-m": Entry(
        target="kifuse.methods.kif:KIF",
        summary="KIF, then training on kept examples, with the units frozen that only the new task needs.",
        data_class="real replay",
        preset={"replay_epochs": 1},
        paper=_KIF,
    ),
    "kiflora-m": Entry(
        target="kifuse.methods.kif:KIF",
        summary="KIFLoRA, then training on kept examples, with the ranks frozen that only the new task "
        "needs.",
        data_class="real replay",
        preset={**_KIFLORA, "replay_epochs": 1},
        paper=_KIF,
    ),
    "tasl": Entry(
        target="kifuse.methods.kif:KIF",
        summary="KIF under the name it was first published with (ACL 2024).",
        data_class="replay-free",
        paper=_KIF,
    ),
    "weight-ensemble": Entry(
        target="kifuse.methods.average:WeightEnsemble",
        summary="Averages the old and new adapter after each task, with one weight for all parameters.",
        data_class="replay-free",
        paper=_KIF,
    ),
    "ema": Entry(
        target="kifuse.methods.average:EMA",
        summary="Replaces the adapter after each task by its running average over the task's steps.",
        data_class="replay-free",
        paper=_KIF,
    ),
    "recurrent-kif": Entry(
        target="kifuse.methods.recurrent_kif:RecurrentKIF",
        summary="Fuses many times within a task: inner steps on the task, outer steps on kept examples.",
        data_class="real replay",
        paper=_RECURRENT_KIF,
    ),
    "inclora": Entry(
        target="kifuse.methods.inclora:IncLoRA",
        summary="A new adapter for each task on top of the earlier ones, which stay active and frozen.",
        data_class="replay-free",
    ),
    "o-lora": Entry(
        target="kifuse.methods.olora:OLoRA",
        summary="IncLoRA with each task's adapter kept orthogonal to the earlier ones by a penalty.",
        data_class="replay-free",
        paper="arXiv 2310.14152",
    ),
    "n-lora": Entry(
        target="kifuse.methods.nlora:NLoRA",
        summary="IncLoRA with sparse updates, so that tasks rarely change the same weights.",
        data_class="replay-free",
        paper="arXiv 2410.10179",
    ),
    "ella": Entry(
        target="kifuse.methods.ella:ELLA",
        summary="IncLoRA with a penalty on changing the matrix entries that earlier tasks changed.",
        data_class="replay-free",
        paper="arXiv 2601.02232",
    ),
    "der++": Entry(
        target="kifuse.methods.derpp:DERPP",
        summary="Replay that also keeps the model near the outputs that it once gave for each kept example.",
        data_class="real replay",
        paper="arXiv 2004.07211",
    ),
    "dft": Entry(
        target="kifuse.methods.token_weights:TokenWeights",
        summary="Weights each target token by its probability, so that unlikely tokens change the model "
        "less.",
        data_class="replay-free",
        paper="arXiv 2508.05629",
    ),
    "eaft": Entry(
        target="kifuse.methods.token_weights:TokenWeights",
        summary="Weights each target token by how unsure the model is about it.",
        data_class="replay-free",
        preset={"weigh_by": "entropy"},
        paper="arXiv 2601.02151",
    ),
    "asft": Entry(
        target="kifuse.methods.token_weights:TokenWeights",
        summary="DFT with a penalty that keeps the model near the one before the task.",
        data_class="replay-free",
        preset={"anchor": 0.1},
        paper="arXiv 2509.23753",
    ),
    "generated-replay": Entry(
        target="kifuse.methods.generated:GeneratedReplay",
        summary="Replay of examples that the model wrote at the end of their task; keeps no real example.",
        data_class="generated replay",
    ),
    "ewc": Entry(
        target="kifuse.methods.ewc:EWC",
        summary="A penalty on changing the weights that mattered to earlier tasks, by their Fisher "
        "information.",
        data_class="replay-free",
        paper="arXiv 1612.00796",
    ),
    "online-ewc": Entry(
        target="kifuse.methods.ewc:EWC",
        summary="EWC with one running Fisher information around the adapter after the last task.",
        data_class="replay-free",
        preset={"online": True},
        paper="arXiv 1805.06370",
    ),
    "l2p": Entry(
        target="kifuse.methods.l2p:L2P",
        summary="A pool of prompts; each input uses those whose keys are most similar to it.",
        data_class="replay-free",
        paper="arXiv 2112.08654",
    ),
    "progprompt": Entry(
        target="kifuse.methods.progprompt:ProgPrompt",
        summary="One prompt for each task, put before those of earlier tasks; needs the task of a test "
        "example.",
        data_class="task id given",
        paper="arXiv 2301.12314",
    ),
    "lfpt5": Entry(
        target="kifuse.methods.lfpt5:LFPT5",
        summary="One prompt that also learns to write examples of earlier tasks, for replay and "
        "distillation.",
        data_class="generated replay",
        paper="arXiv 2110.07298",
    ),
    "epi": Entry(
        target="kifuse.methods.epi:EPI",
        summary="A prefix for each task, chosen for each input by its representation in the frozen model.",
        data_class="replay-free",
        paper="ACL 2023",
    ),
    "mocl": Entry(
        target="kifuse.methods.mocl:MoCL",
        summary="A prefix or LoRA pair for each task; each input combines all, by similarity to their keys.",
        data_class="replay-free",
        paper="arXiv 2404.00790",
    ),
    "sapt": Entry(
        target="kifuse.methods.sapt:SAPT",
        summary="A LoRA pair for each task, and an attention over all pairs that is kept as it was.",
        data_class="real replay",
        paper="arXiv 2401.08295",
    ),
    "moe-lora": Entry(
        target="kifuse.methods.moe_lora:MoELoRA",
        summary="Several LoRA experts in each layer, weighted for each token by a router.",
        data_class="replay-free",
        paper="arXiv 2402.12851",
    ),
    "lwf": Entry(
        target="kifuse.methods.lwf:LwF",
        summary="Keeps the model's outputs on the task's inputs near those from before the task.",
        data_class="replay-free",
        paper="arXiv 1606.09282",
    ),
    "sdft": Entry(
        target="kifuse.methods.sdft:SDFT",
        summary="Distils, on its own answers, from the model before the task, which sees the right answer.",
        data_class="replay-free",
        paper="arXiv 2601.19897",
    ),
    "ogd": Entry(
        target="kifuse.methods.ogd:OGD",
        summary="Makes steps orthogonal to the gradients of earlier tasks' logits.",
        data_class="replay-free",
        paper="arXiv 1910.07104",
    ),
    "gpm": Entry(
        target="kifuse.methods.gpm:GPM",
        summary="Makes steps orthogonal to the inputs that each layer had in earlier tasks.",
        data_class="replay-free",
        paper="arXiv 2103.09762",
    ),
    "on-policy-repair": Entry(
        target="kifuse.methods.on_policy_repair:OnPolicyRepair",
        summary="After a task, pulls the model back towards the one before it, on its own answers.",
        data_class="real replay",
    ),
    "osf": Entry(
        target="kifuse.methods.osf:OSF",
        summary="Trains the smaller singular directions of the model's matrices, found again for each task.",
        data_class="replay-free",
        paper="arXiv 2504.07097",
    ),
    "migu": Entry(
        target="kifuse.methods.migu:MIGU",
        summary="Updates in each step only the output units with the largest activations.",
        data_class="replay-free",
        paper="arXiv 2406.17245",
    ),
    "slao": Entry(
        target="kifuse.methods.slao:SLAO",
        summary="Starts each task from the last adapter, A made orthonormal, and merges B over the tasks.",
        data_class="replay-free",
        paper="arXiv 2512.23017",
    ),
    "forever": Entry(
        target="kifuse.methods.forever:Forever",
        summary="Replays kept examples at growing intervals, counted by how far the weights have moved.",
        data_class="real replay",
        paper="arXiv 2601.03938",
    ),
    "aimmerging": Entry(
        target="kifuse.methods.aim:AIMMerging",
        summary="Averages task and memory steps at intervals that adapt; as in AIMMerging's published code.",
        data_class="real replay",
        paper="arXiv 2509.17348",
    ),
    "vr-mcl": Entry(
        target="kifuse.methods.vr_mcl:VRMCL",
        summary="Meta-gradients over task and kept examples, with reduced variance; first order by default.",
        data_class="real replay",
        paper="ICLR 2024",
    ),
}
