"""The command line: ``kifuse VERB``. Each verb has a file, which imports heavy modules only when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from kifuse import __version__
from kifuse.cli.ask import ask
from kifuse.cli.compare import compare
from kifuse.cli.cp import cp
from kifuse.cli.demo import demo
from kifuse.cli.evaluate import evaluate
from kifuse.cli.export import export
from kifuse.cli.forget import forget
from kifuse.cli.fuse import fuse
from kifuse.cli.history import history
from kifuse.cli.learn import learn
from kifuse.cli.ls import ls_app
from kifuse.cli.quiet import quieten_imports
from kifuse.cli.report import report
from kifuse.cli.reproduce import reproduce
from kifuse.cli.rollback import rollback
from kifuse.cli.run import run
from kifuse.cli.show_memory import show_app
from kifuse.cli.table import table
from kifuse.cli.user_errors import EPILOG_GAP, KifuseGroup
from kifuse.cli.validate import validate

app = typer.Typer(
    cls=KifuseGroup,
    help="Continual learning for language models: one task after another, without forgetting.",
    epilog=EPILOG_GAP.join(
        ["Start with:  kifuse demo", "Then:  kifuse ls methods", "Then:  kifuse run CONFIG.yaml"]
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"kifuse {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    """Continual learning for language models: one task after another, without forgetting."""
    quieten_imports()


def _examples(*lines: str) -> str:
    return EPILOG_GAP.join(["[bold]Examples[/bold]", *lines])


app.command(
    epilog=_examples(
        "kifuse demo",
        "kifuse demo --seed 1 --methods sequential,replay,recurrent-kif --output runs/demo",
    )
)(demo)
app.command(
    epilog=_examples(
        "kifuse learn desk october.jsonl --model smollm2-135m",
        "kifuse learn desk november/ --max-forgetting 5 --min-score 70",
        "kifuse learn desk december.csv --column input=question --column output=answer --json",
    )
)(learn)
app.command(
    epilog=_examples(
        'kifuse ask desk "My card was declined." --task october',
        "kifuse ask desk --file questions.jsonl --after october --after now",
        "kifuse ask desk --chat",
    )
)(ask)
app.command(
    epilog=_examples("kifuse evaluate desk", "kifuse evaluate desk general.jsonl --after october --json")
)(evaluate)
app.command(epilog=_examples("kifuse history desk", "kifuse history desk --json"))(history)
app.command(epilog=_examples("kifuse rollback desk --to october"))(rollback)
app.command(
    epilog=_examples("kifuse forget desk october", "kifuse forget desk october --retrain november.jsonl")
)(forget)
app.command(
    epilog=_examples(
        "kifuse export desk",
        "kifuse export desk --merged --output desk-model",
        "kifuse export desk --after october --push-to-hub me/support-desk",
    )
)(export)
app.command(
    epilog=_examples(
        "kifuse run long-sequence.yaml",
        "kifuse run long-sequence.yaml --set training.epochs=2 --set method.name=kif --output runs/kif",
        "kifuse run --benchmark long-sequence --order 4 --data data/long_sequence --model smollm2-135m "
        "--method recurrent-kif --output runs/recurrent-kif",
    )
)(run)
app.command(
    epilog=_examples(
        "kifuse compare --methods sequential,replay,kiflora,recurrent-kif --benchmark support-desk "
        "--seeds 0,1,2 --model smollm2-135m --output runs/compared",
        "kifuse compare --methods replay,recurrent-kif --benchmark standard-cl --orders 1,2,3 --seeds 0,1 "
        "--data data/long_sequence --model smollm2-135m --output runs/compared",
        "kifuse compare grid.yaml --dry-run",
        "kifuse compare grid.yaml --on slurm --jobs 16 --job slurm_partition=gpu --job gpus_per_node=1",
    )
)(compare)
app.command(
    epilog=_examples(
        "kifuse reproduce list",
        "kifuse reproduce rkif-table-2 --data DATA --budget bench --seeds 0,1,2",
        "kifuse reproduce kif-table-5 --data DATA --model llama-2-7b --budget paper",
    )
)(reproduce)
app.add_typer(ls_app, name="ls")
app.command(
    epilog=_examples(
        "kifuse cp recurrent-kif --data data",
        "kifuse cp kiflora llama.yaml --model llama-2-7b --benchmark superni --order 2 --data data",
        "kifuse cp recurrent-kif small.yaml --model smollm2-135m --set memory.share=0.1",
    )
)(cp)
app.command(
    epilog=_examples(
        "kifuse validate long-sequence.yaml", "kifuse validate long-sequence.yaml --set training.epochs=2"
    )
)(validate)
app.command(
    epilog=_examples("kifuse table runs/kif", "kifuse table runs/sequential runs/kif runs/recurrent-kif")
)(table)
app.command(
    epilog=_examples(
        "kifuse report runs/kif",
        "kifuse report runs/sequential runs/kif runs/recurrent-kif --output comparison.html",
        "kifuse report runs/kif --figures figures --tables tables",
        "kifuse report runs/kif --no-examples --output to-show.html",
    )
)(report)
app.command(
    epilog=_examples(
        "kifuse fuse --previous runs/kif/adapters/after-1 --current new --importance scores.safetensors "
        "--output fused",
        "kifuse fuse --previous old --current new --fusion average --average 0.3 --output fused",
    )
)(fuse)
app.add_typer(show_app, name="show")


def main() -> None:
    """Runs the command line and ends the process with its exit code."""
    app(prog_name="kifuse")
