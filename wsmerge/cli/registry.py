"""Commands on the local store: put directions into it, look at them, and take care of it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsmerge.cli.options import AsJson, StorePath
from wsmerge.cli.output import Output
from wsmerge.cli.registry_views import (
    changed_fields,
    difference_json,
    end_if_broken,
    entry_json,
    facts,
    first_few,
    print_entries,
    short,
)

_PANEL = "Registry"

app = typer.Typer()
_EMPTY = "the store is empty: wsmerge publish ./FOLDER puts a direction into it"

ReferenceText = Annotated[str, typer.Argument(help="name, name@1.2.0, name@alias, name@sha256:HEX, or ./folder.")]


@app.command("publish", rich_help_panel=_PANEL)
def publish_command(
    folder: Annotated[Path, typer.Argument(help="An artifact: a folder with `direction.json` and its tensors.")],
    name: Annotated[str | None, typer.Option(help="Store it under this name instead of its own.")] = None,
    version: Annotated[str | None, typer.Option(help="Store it as this version instead of its own.")] = None,
    alias: Annotated[list[str] | None, typer.Option(help="Point this alias to it; may be given again.")] = None,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Put an artifact into the local store, as a version that never changes.

    All of it is checked and hashed first. Publishing the same direction again does nothing.

    Example: wsmerge publish directions/sycophancy --alias good
    """
    from wsmerge.registry import open_registry

    output = Output(as_json=as_json)
    entry = open_registry(store).publish(folder, name=name, version=version, aliases=tuple(alias or ()))
    output.data(entry_json(entry))
    output.text(f"{entry.label}: version digest {entry.version_digest}")
    output.text(f"at {entry.place}")


@app.command("list", rich_help_panel=_PANEL)
def list_command(
    name: Annotated[str | None, typer.Argument(help="Only the versions of this name.")] = None,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """List what is in the local store.

    Example: wsmerge list sycophancy
    """
    from wsmerge.registry import open_registry

    output = Output(as_json=as_json)
    survey = open_registry(store).survey(name)
    print_entries(output, survey.entries, nothing=None if survey.broken else _EMPTY)
    end_if_broken(output, survey)


@app.command("search", rich_help_panel=_PANEL)
def search_command(
    words: Annotated[list[str] | None, typer.Argument(help="Words that all occur in the metadata.")] = None,
    base: Annotated[str | None, typer.Option(help="Part of the base's name.")] = None,
    behaviour: Annotated[
        str | None, typer.Option("--behaviour", "--behavior", help="Part of the direction's name or description.")
    ] = None,
    kind: Annotated[str | None, typer.Option(help="contrastive, task_vector, composed or bias_only.")] = None,
    name: Annotated[
        str | None, typer.Option(help="Part of the name that it is stored under, or of OWNER/REPO.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Part of a dataset's id or path.")] = None,
    hub: Annotated[
        bool | None, typer.Option("--hub/--local", help="Only the Hub, or only the local store. Default: both.")
    ] = None,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Find directions in the local store and on the Hub, by name, description, base and datasets.

    Without a network, or with HF_HUB_OFFLINE, the local store alone is searched.

    Example: wsmerge search honest --base SmolLM2
    """
    from wsmerge.cli.found import print_found, search_both
    from wsmerge.registry import open_registry
    from wsmerge.registry.search import Wanted

    wanted = Wanted(query=" ".join(words or ()), base=base, behaviour=behaviour, kind=kind, name=name, dataset=dataset)
    output = Output(as_json=as_json)
    found = search_both(open_registry(store), wanted, local=not hub, hub=hub is not False, hub_needed=bool(hub))
    print_found(output, found, empty=_EMPTY)
    end_if_broken(output, found.survey)


@app.command("show", rich_help_panel=_PANEL)
def show_command(reference: ReferenceText, store: StorePath = None, as_json: AsJson = False) -> None:
    """Show what a direction is made of: base, poles, data, norms by layer, digests. With --json: its manifest.

    Example: wsmerge show sycophancy@1.0.0
    """
    from wsmerge.registry import StoreReference, open_reference, open_registry, parse_reference
    from wsmerge.registry.card import norms_by_layer
    from wsmerge.registry.hub.pins import commits_of

    output = Output(as_json=as_json)
    shelf = open_registry(store)
    with open_reference(reference, shelf) as direction:
        manifest = direction.manifest
        output.data(manifest.fields())
        output.text(f"{direction.label}  {manifest.description}".rstrip())
        rows = facts(manifest, direction.files.label)
        if isinstance(parse_reference(reference), StoreReference):
            rows += [("pulled from commit", commit) for commit in commits_of(shelf.resolve(direction.label))]
        output.table(("field", "value"), rows)
        output.text("")
        output.table(("layer", "norm"), list(norms_by_layer(manifest.tensors).items()))


@app.command("log", rich_help_panel=_PANEL)
def log_command(
    name: Annotated[str, typer.Argument(help="A name in the store.")], store: StorePath = None, as_json: AsJson = False
) -> None:
    """Show what happened to a name: versions published and removed, aliases moved.

    Example: wsmerge log sycophancy
    """
    from dataclasses import asdict

    from wsmerge.registry import open_registry

    output = Output(as_json=as_json)
    events = open_registry(store).log(name)
    output.data([asdict(event) for event in events])
    output.table(
        ("time", "what", "alias", "version", "version digest"),
        [(event.time, event.action, event.alias, event.version, short(event.version_digest)) for event in events],
    )


@app.command("tag", rich_help_panel=_PANEL)
def tag_command(
    reference: Annotated[str, typer.Argument(help="The version: name@1.2.0. With --delete: the name.")],
    alias: Annotated[str, typer.Argument(help="The alias.")],
    delete: Annotated[bool, typer.Option("--delete", help="Drop the alias instead.")] = False,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Point an alias to a version, or drop it. `latest` is an alias too: without one, it is the highest release.

    Example: wsmerge tag sycophancy@1.0.0 good
    """
    from wsmerge.registry import open_registry
    from wsmerge.registry.references import parse_store_reference

    output = Output(as_json=as_json)
    shelf = open_registry(store)
    name = parse_store_reference(reference).name
    if delete:
        shelf.untag(name, alias)
        output.data({"name": name, "alias": alias, "version": None})
        output.text(f"{name} has no alias {alias} any more")
        return
    entry = shelf.tag(name, alias, str(shelf.resolve(reference).version))
    output.data({"name": name, "alias": alias, "version": str(entry.version)})
    output.text(f"{name}@{alias} is {entry.label}")


@app.command("rm", rich_help_panel=_PANEL)
def rm_command(
    reference: Annotated[str, typer.Argument(help="One version: name@1.2.0, name@alias or name@sha256:HEX.")],
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Remove a version and its aliases. Its number is never used again, and `wsmerge gc` frees the space.

    Example: wsmerge rm sycophancy@0.9.0
    """
    from wsmerge.registry import open_registry
    from wsmerge.registry.references import parse_store_reference

    output = Output(as_json=as_json)
    removed = open_registry(store).remove(reference)
    name = parse_store_reference(reference).name
    output.data({"name": name, "version": removed.version, "version_digest": removed.version_digest})
    output.text(f"{name}@{removed.version} was removed")
    output.note("next: wsmerge gc shows what can be freed")


@app.command("gc", rich_help_panel=_PANEL)
def gc_command(
    delete: Annotated[bool, typer.Option("--delete", help="Delete it. Without this, it is only counted.")] = False,
    min_age_s: Annotated[
        float, typer.Option("--min-age", help="Seconds for which unfinished files must have been left alone.", min=0)
    ] = 3600,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Count what the store does not need any more, or delete it: removed versions and leftovers of killed processes.

    Example: wsmerge gc --delete
    """
    from dataclasses import asdict

    from wsmerge.registry import open_registry

    output = Output(as_json=as_json)
    report = open_registry(store).gc(dry_run=not delete, min_age_s=min_age_s)
    output.data(asdict(report))
    verb = "would free" if report.dry_run else "freed"
    output.text(
        f"{verb} {report.freed_bytes / 1e6:,.1f} MB: {report.removed_versions} removed versions, {report.blobs} blobs, "
        f"{report.temporaries} leftovers"
    )
    if report.dry_run and report.freed_bytes:
        output.note("next: wsmerge gc --delete")


@app.command("verify", rich_help_panel=_PANEL)
def verify_command(
    reference: Annotated[str | None, typer.Argument(help="One direction. Without it: all of the store.")] = None,
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Hash stored tensors against their manifests. Ends with exit code 3 if anything is wrong.

    Example: wsmerge verify sycophancy
    """
    from wsmerge.registry import open_registry
    from wsmerge.registry.resolve import verify_reference

    output = Output(as_json=as_json)
    shelf = open_registry(store)
    report = shelf.verify() if reference is None else verify_reference(reference, shelf)
    output.data({"versions": list(report.versions), "problems": list(report.problems)})
    report.raise_if_bad()
    output.text(f"all is well: {', '.join(report.versions) or 'the store is empty'}")


@app.command("diff", rich_help_panel=_PANEL)
def diff_command(left: ReferenceText, right: ReferenceText, store: StorePath = None, as_json: AsJson = False) -> None:
    """Show what changed from one direction to another: metadata, tensors, and the angle between their deltas.

    Example: wsmerge diff sycophancy@1.0.0 sycophancy@1.1.0
    """
    from wsmerge.registry import compare_directions, open_reference, open_registry

    output = Output(as_json=as_json)
    shelf = open_registry(store)
    with open_reference(left, shelf) as first, open_reference(right, shelf) as second:
        found = compare_directions(first, second)
    output.data(difference_json(found))
    if found.fields:
        output.table(("field", found.left, found.right), changed_fields(found.fields))
        output.text("")
    if found.changed:
        shown, more = first_few(output, found.changed)
        rows = [(change.name, change.cosine, change.norm_ratio) for change in shown]
        output.table(("tensor", "cosine", "norm ratio"), rows)
        output.text(more)
    for sign, names in (("+", found.added), ("-", found.removed)):
        few, more = first_few(output, names)
        for line in (*(f"{sign} {name}" for name in few), *([more] if more else [])):
            output.text(line)
    output.text(
        f"{found.unchanged} tensors are the same, {len(found.changed)} changed, {len(found.added)} added, "
        f"{len(found.removed)} removed"
    )
