"""Commands that move directions between the local store and the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsmerge.cli.options import AsJson, StorePath, store_at
from wsmerge.cli.output import Output
from wsmerge.errors import UsageError

if TYPE_CHECKING:
    from wsmerge.registry.hub.pull import Pulled
    from wsmerge.registry.hub.push import Pushed

_PANEL = "Registry"

app = typer.Typer()

_DONE = {
    "pushed": "pushed",
    "tagged": "was pushed before without its tag, which it has now",
    "present": "is there already",
    "evaluated": "was there, and has its evaluations now",
}


@app.command("push", rich_help_panel=_PANEL)
def push_command(
    reference: Annotated[str, typer.Argument(metavar="REF", help="name, name@1.2.0, name@alias or ./folder.")],
    repo: Annotated[str, typer.Argument(metavar="OWNER/REPO", help="The repository; made where it is missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make the repository private, if it is made.")] = False,
    alias: Annotated[
        list[str] | None, typer.Option("--alias", "--tag", help="Point this tag to it too; may be given again.")
    ] = None,
    message: Annotated[str | None, typer.Option(help="First line of the commit. Default: NAME@VERSION.")] = None,
    evaluation: Annotated[
        list[Path] | None,
        typer.Option(
            "--evaluation", help="A file of results (wsmerge sweep writes them), for beside it; again for more."
        ),
    ] = None,
    collect: Annotated[
        bool, typer.Option("--collect", help="Put the repository into your collection for its base; made if missing.")
    ] = False,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Push a version to the Hub: one commit, and the tag that makes it a version.

    A version on the Hub never changes: another direction under its number is refused, and the same one changes nothing. A
    version lower than the highest leaves `main` alone. After a cut, push again. Evaluations may come later: they and the
    card go to main, and the tag stays.

    HF_TOKEN or `hf auth login` say who you are, HF_ENDPOINT where the Hub is.

    Example: wsmerge push sycophancy@1.0.0 acme/sycophancy
    """
    from dataclasses import asdict

    from wsmerge.api.hub import PushOptions, push

    output = Output(as_json=as_json)
    options = PushOptions(
        private=private,
        aliases=tuple(alias or ()),
        message=message,
        evaluations=tuple(evaluation or ()),
        bars=not as_json,
    )
    pushed = push(reference, repo, options=options, collect=collect, store=store_at(store))
    output.data(asdict(pushed))
    _tell_pushed(output, pushed)


@app.command("pull", rich_help_panel=_PANEL)
def pull_command(
    reference: Annotated[
        str,
        typer.Argument(metavar="OWNER/REPO[@REV]", help="A version, tag, branch or commit. Alone: highest release."),
    ],
    layers: Annotated[str | None, typer.Option(help="Only these layers: 8-15, or 0,3,8-15.")] = None,
    modules: Annotated[
        str | None, typer.Option(help="Only tensors with one of these in their names: mlp, or q_proj,v_proj.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name in the store. Default: OWNER/REPO.")] = None,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Bring a direction from the Hub into the local store, as OWNER/REPO@VERSION.

    Every byte is checked, and the commit it came from is kept as an alias. A version that was changed on the Hub after it
    was pulled is refused. After a cut, pull again: what came is kept. With --layers or --modules only their bytes are
    read, and become a direction of their own.

    Example: wsmerge pull acme/sycophancy@1.0.0
    """
    from wsmerge.api.hub import pull, pull_part

    output, shelf = Output(as_json=as_json), store_at(store)
    if layers is None and modules is None:
        with output.progress(f"pulling {reference}") as progress:
            _tell_pulled(output, pull(reference, name=name, store=shelf, progress=progress))
        return
    chosen = [module.strip() for module in (modules or "").split(",") if module.strip()]
    if modules is not None and not chosen:
        raise UsageError("--modules is empty", hint="write parts of tensor names: --modules mlp")
    with output.progress(f"pulling part of {reference}") as progress:
        part = pull_part(reference, layers=layers, modules=chosen, name=name, store=shelf, progress=progress)
    output.data(_entry(part) | {"commit": part.commit, "bytes_read": part.bytes_read, "whole_bytes": part.whole_bytes})
    output.text(f"{part.entry.label}: {len(part.entry.manifest.tensors)} tensors of commit {part.commit}")
    share = part.bytes_read / part.whole_bytes
    output.text(f"{part.bytes_read:,} bytes read, of {part.whole_bytes:,} that the whole has ({share:.1%})")


def _tell_pushed(output: Output, pushed: Pushed) -> None:
    output.text(f"{pushed.repo}@{pushed.version} {_DONE[pushed.outcome]}: commit {pushed.commit}, tag {pushed.tag}")
    output.text(f"version digest {pushed.version_digest}")
    for alias in pushed.aliases:
        output.text(f"alias {alias}")
    if pushed.collection:
        output.text(f"in {pushed.collection}")
    if pushed.branch not in (None, "main"):
        output.note("main stays where it is: it holds a higher version")
    output.note(f"at {pushed.url}")
    output.note(f"next: wsmerge pull {pushed.repo}@{pushed.version}")


def _tell_pulled(output: Output, pulled: Pulled) -> None:
    output.data(_entry(pulled) | {"commit": pulled.commit, "outcome": pulled.outcome, "bytes_read": pulled.bytes_read})
    label = pulled.entry.label
    if pulled.outcome == "pulled":
        output.text(f"{label}: commit {pulled.commit}, {pulled.bytes_read:,} bytes read")
    elif pulled.outcome == "present":
        output.text(f"{label} is in the store already: commit {pulled.commit}")
    else:
        output.text(f"{label} is in the store; the Hub was not asked (HF_HUB_OFFLINE)")
    output.text(f"version digest {pulled.entry.version_digest}")
    for note in pulled.notes:
        output.warning(note)


def _entry(pulled: Any) -> dict[str, Any]:  # noqa: ANN401 - what has an entry: a whole or a part
    from wsmerge.cli.registry_views import entry_json

    return entry_json(pulled.entry)
