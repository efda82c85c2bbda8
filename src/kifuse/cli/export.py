"""``kifuse export``: write what a learner or a run has learned as a folder that loads without kifuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from kifuse.cli.opened_learner import JSON, MODEL, TRUST
from kifuse.cli.quiet import QUIET

if TYPE_CHECKING:
    from kifuse.exporting.folder import Export


def export(
    folder: Annotated[Path, typer.Argument(help="A learner's folder, or a run's.")],
    output: Annotated[
        Path | None, typer.Option(help="Folder to write. Default: 'export' in the first folder.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(help="Export the state after this task. Default: the last one.")
    ] = None,
    merged: Annotated[
        bool,
        typer.Option("--merged", help="Export the whole model, with the adapter merged into its weights."),
    ] = False,
    precision: Annotated[
        str,
        typer.Option(
            help="Number format of a merged model: base (as in the base model's files), fp32, bf16 or fp16."
        ),
    ] = "base",
    may_differ: Annotated[
        int,
        typer.Option(min=0, help="How many probe answers of a merged model may differ from the adapter's."),
    ] = 0,
    model: Annotated[str | None, typer.Option(help=MODEL)] = None,
    base: Annotated[
        str | None, typer.Option(help="The base model's public name, such as its hub id.")
    ] = None,
    licence: Annotated[
        str | None, typer.Option(help="Licence of the base model, if kifuse does not find its model card.")
    ] = None,
    push_to_hub: Annotated[
        str | None,
        typer.Option(metavar="OWNER/NAME", help="Upload the export to this repository of the hub."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public.")] = False,
    trust_remote_code: Annotated[bool, typer.Option("--trust-remote-code", help=TRUST)] = False,
    as_json: Annotated[bool, typer.Option("--json", help=JSON)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help=QUIET)] = False,
) -> None:
    """Export what was learned: the adapter, or a merged model, with tokenizer, chat template and model card.

    The command says which of vLLM, llama.cpp and Ollama can load the result, and how. It checks a merged
    model: the model must give the same answers to some test questions as the adapter. The export holds no
    example and no path of this machine.
    """
    from kifuse.cli.quiet import quieten
    from kifuse.exporting.folder import export as write_export
    from kifuse.terminal.safe_console import SafeConsole

    quieten(everything=quiet)
    console = SafeConsole(stderr=True, quiet=quiet, highlight=False)
    done = write_export(
        folder,
        output,
        after=after,
        merged=merged,
        precision=precision,
        may_differ=may_differ,
        model=model,
        base=base,
        licence=licence,
        push_to_hub=push_to_hub,
        private=not public,
        trust_remote_code=trust_remote_code,
        say=lambda text: console.print(text, markup=False, soft_wrap=True),
    )
    if as_json:
        typer.echo(json.dumps(done.facts()))
    elif not quiet:
        _print(done)


def _print(done: Export) -> None:
    from kifuse.terminal.safe_console import SafeConsole

    console = SafeConsole(highlight=False)
    learned = ", ".join(done.tasks)
    lines = [f"{done.form} on {done.base.name}, which learned {learned}: {done.folder}"]
    if done.probe is not None:
        asked, same = done.probe["questions"], done.probe["same"]
        lines.append(
            f"{same} of {asked} probe answers are the same as the adapter's ({done.probe['precision']})"
        )
    for server in done.servers:
        if server.refuses:
            lines.append(f"{server.name} cannot load it: {server.refuses}")
        else:
            lines += [f"{server.name}:", *(f"  {command}" for command in server.commands)]
    if done.commit:
        lines.append(f"uploaded: {done.commit}")
    console.print("\n".join(lines), markup=False, soft_wrap=True)
