"""Commands on recipes: plan and merge."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsmerge.cli.merging import Cut, Exactness, Forms, Permissions, settings_from
from wsmerge.cli.options import (
    AllowCrimes,
    AsJson,
    BlockSize,
    IntermediateDir,
    MergekitBugs,
    MergekitRng,
    Overwrite,
    Plugin,
    Precise,
    Raw,
    RecipePath,
    Seed,
    ShardSize,
    StorePath,
    Stream,
    Strict,
    TensorIntersection,
    TensorUnion,
    Threads,
    TruncateEmbeddings,
    TrustRemoteCode,
    load_plugins,
    parse_size,
    store_at,
)
from wsmerge.cli.output import Output
from wsmerge.cli.startup import hide_scipy_from_numba, loading

if TYPE_CHECKING:
    from wsmerge.api import RecipePlan
    from wsmerge.engine.merge import MergeReport
    from wsmerge.recipe import Row

_PANEL = "Recipes"

app = typer.Typer()


@app.command("plan", rich_help_panel=_PANEL)
def plan_command(
    recipe: RecipePath,
    store: StorePath = None,
    max_shard_size: ShardSize = "5GB",
    block_mib: BlockSize = 8,
    threads: Threads = None,
    stream: Stream = False,
    precise: Precise = False,
    mergekit_bugs: MergekitBugs = False,
    mergekit_rng: MergekitRng = False,
    seed: Seed = 0,
    allow_crimes: AllowCrimes = False,
    truncate_embeddings: TruncateEmbeddings = False,
    trust_remote_code: TrustRemoteCode = False,
    strict: Strict = False,
    raw: Raw = False,
    tensor_union: TensorUnion = False,
    tensor_intersection: TensorIntersection = False,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Show what a recipe will do, and write nothing; of a file with several recipes, what each will do.

    Prints, for each direction, which coefficient k applies in which layers and modules and which line of the recipe
    gave it; then the merge methods, the output files, the bytes to read and write, and the peak memory.

    Example: wsmerge plan recipe.yml
    """
    from wsmerge import api

    load_plugins(plugin)
    settings = settings_from(
        Cut(parse_size(max_shard_size), block_mib, threads),
        Exactness(precise, mergekit_bugs, mergekit_rng, seed),
        Permissions(allow_crimes, truncate_embeddings, trust_remote_code, strict),
        Forms(raw, tensor_union, tensor_intersection),
        stream=stream,
    )
    with api.plan(recipe, store=store_at(store), settings=settings) as planned:
        _print_plan(Output(as_json=as_json), planned)


@app.command("lint", rich_help_panel=_PANEL)
def lint_command(
    recipe: RecipePath,
    store: StorePath = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with 1 on warnings too.")] = False,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Tell what is wrong, or probably not meant, in a recipe, and what to change.

    Finds keys that nothing reads or that stand in the wrong place, parameters that the method does not read or lacks,
    gradients that never reach the output embedding, layer ranges that are empty or too long; and, where the models are
    on this machine, vocabularies and shapes that differ, tensors that nothing names, quantised weights. Merges make the
    same checks first.

    Ends with 1 where a merge would refuse the recipe.

    Example: wsmerge lint recipe.yml
    """
    from wsmerge import api

    load_plugins(plugin)
    output = Output(as_json=as_json)
    found = api.lint(recipe, store=store_at(store))
    output.data(
        {
            "findings": [
                {"level": one.level, "code": one.code, "where": one.where, "message": one.message, "hint": one.hint}
                for one in found
            ]
        }
    )
    for one in found:
        output.text(f"{one.level}: {one.where}: {one.message}" if one.where else f"{one.level}: {one.message}")
        if one.hint:
            output.text(f"  next: {one.hint}")
    if not found:
        output.text(f"{recipe}: nothing found")
    failing = {"error", "warning"} if strict else {"error"}
    if any(one.level in failing for one in found):
        raise typer.Exit(1)


@app.command("merge", rich_help_panel=_PANEL)
def merge_command(
    recipe: RecipePath,
    out: Annotated[Path, typer.Argument(help="Folder to make; it appears when all of it is on the disk.")],
    overwrite: Overwrite = False,
    store: StorePath = None,
    max_shard_size: ShardSize = "5GB",
    block_mib: BlockSize = 8,
    threads: Threads = None,
    stream: Stream = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print the plan only.")] = False,
    precise: Precise = False,
    mergekit_bugs: MergekitBugs = False,
    mergekit_rng: MergekitRng = False,
    seed: Seed = 0,
    allow_crimes: AllowCrimes = False,
    truncate_embeddings: TruncateEmbeddings = False,
    trust_remote_code: TrustRemoteCode = False,
    strict: Strict = False,
    intermediate_dir: IntermediateDir = None,
    raw: Raw = False,
    tensor_union: TensorUnion = False,
    tensor_intersection: TensorIntersection = False,
    plugin: Plugin = None,
    as_json: AsJson = False,
) -> None:
    """Write the checkpoint that a recipe describes.

    Recipes of mergekit are carried out as they are, with mergekit's bits. Directions may be added to the result of any
    merge, or stand where a model stands.

    The recipe is checked against its models and directions before any weight is read. A merge that fails, or is
    interrupted with Ctrl-C, leaves nothing behind; one that was killed goes on where it stopped when started again.

    A recipe, whose paths are seen from the folder you are in:

        merge_method: ties                # leave these four keys out to steer the base alone
        models:
          - model: acme/chat              # or ./folder, acme/chat@revision, acme/chat+lora
            parameters: {weight: 0.5, density: 0.5}
        base_model: HuggingFaceTB/SmolLM2-135M-Instruct
        dtype: bfloat16
        directions:
          - direction: sycophancy@1.0.0   # or ./folder
            weight: -0.5                  # one k; often between -1 and 1
          - direction: formality
            weight:                       # or rules: the first that matches a tensor wins
              - filter: mlp               # substring of the tensor name
                value: [0, 1, 0.5]        # gradient over the layers
              - layers: 8-15              # inclusive; or 8, or [0-3, 8]
                value: 0.5

    Fidelity tells what rounding left of the directions: cosine 1 and norm ratio 1 are all of it; float32 output loses
    nothing. In bfloat16 0.9 is usual for small k.

    Example: wsmerge merge recipe.yml merged/
    """
    from wsmerge import api

    load_plugins(plugin)
    if not plugin:  # a plugin may need all of numba
        hide_scipy_from_numba()
    output = Output(as_json=as_json)
    shelf = store_at(store)
    with loading():
        settings = settings_from(
            Cut(parse_size(max_shard_size), block_mib, threads),
            Exactness(precise, mergekit_bugs, mergekit_rng, seed),
            Permissions(allow_crimes, truncate_embeddings, trust_remote_code, strict),
            Forms(raw, tensor_union, tensor_intersection),
            stream=stream,
        )
        merge = api.merge
    if dry_run:
        with api.plan(recipe, store=shelf, settings=settings) as planned:
            api.check_out(planned, out, overwrite=overwrite)
            _print_plan(output, planned)
        return
    with output.progress(f"merging into {out}") as progress:
        report = merge(
            recipe,
            out,
            overwrite=overwrite,
            store=shelf,
            settings=settings,
            intermediates=intermediate_dir,
            progress=progress,
        )
    _print_report(output, report)


def _print_plan(output: Output, planned: RecipePlan) -> None:
    from wsmerge.recipe import coefficient_table

    plans = (*planned.needs, planned)
    tables = [[coefficient_table(item) for item in one.coefficients] for one in plans]
    *needs, result = [
        one.merge.to_dict() | {"coefficients": _tables_json(one, rows)} for one, rows in zip(plans, tables, strict=True)
    ]
    names = [str(one.recipe.name) for one in planned.needs]
    data = {"needs": [{"name": name, **need} for name, need in zip(names, needs, strict=True)]} if needs else {}
    output.data(result | data)
    for one, of_directions in zip(plans, tables, strict=True):
        if needs:
            output.text(f"recipe {one.recipe.name}:" if one.recipe.name else "the result:")
        for direction, rows in zip(one.directions, of_directions, strict=True):
            _print_table(output, direction.label, rows)
        _print_costs(output, one)


def _tables_json(planned: RecipePlan, tables: list[tuple[Row, ...]]) -> list[dict[str, Any]]:
    return [
        {
            "direction": direction.label,
            "rows": [
                {
                    "stack": row.stack,
                    "layers": row.layers,
                    "modules": list(row.modules),
                    "tensors": row.tensors,
                    "k": row.k,
                    "rule": row.rule,
                }
                for row in rows
            ],
        }
        for direction, rows in zip(planned.directions, tables, strict=True)
    ]


def _print_table(output: Output, label: str, rows: tuple[Row, ...]) -> None:
    output.table(
        ("layers", "modules", "tensors", "k", "from"),
        [(row.layers or "no layer", ", ".join(row.modules), row.tensors, row.k, row.rule) for row in rows],
        title=label,
    )
    output.text("")


def _print_costs(output: Output, planned: RecipePlan) -> None:
    merge = planned.merge
    output.table(
        ("file", "tensors", "bytes"),
        [(shard.file, len(shard.specs), f"{shard.file_bytes:,}") for shard in merge.shards],
    )
    output.text("")
    changed = sum(bool(tensor.terms) for tensor in merge.tensors)
    if merge.is_steering:
        output.text(f"base: {merge.base.label}, {changed} of {len(merge.tensors)} tensors change")
    else:
        _print_methods(output, planned)
    output.text(f"reads {merge.read_bytes / 1e6:,.1f} MB, writes {merge.write_bytes / 1e6:,.1f} MB")
    output.text(f"peak memory at most {merge.peak_bytes / 1e6:,.0f} MB")


def _print_methods(output: Output, planned: RecipePlan) -> None:
    """How many tensors each method makes, of how many inputs, and in which dtype."""
    steps = [tensor.step for tensor in planned.merge.tensors]
    counted = Counter((step.method, len(step.inputs), str(step.dtype)) for step in steps)
    rows = [(method, inputs, dtype, count) for (method, inputs, dtype), count in counted.items()]
    output.table(("method", "inputs", "computed in", "tensors"), rows)
    output.text("")
    output.text(f"configuration from {planned.merge.base.label}")
    for line in planned.warnings:
        output.warning(line)


def _print_report(output: Output, report: MergeReport) -> None:
    output.data(
        {
            "out": str(report.out),
            "elapsed_s": report.elapsed_s,
            "resumed_bytes": report.resumed_bytes,
            "written_bytes": report.written_bytes,
            "hub_bytes": report.hub_bytes,
            "hub_requests": report.hub_requests,
            "outputs": dict(report.outputs),
            "fidelity": report.fidelity.to_dict(),
            "warnings": list(report.warnings),
        }
    )
    if report.resumed_bytes:
        output.note(f"went on with an earlier run that was killed: {report.resumed_bytes / 1e6:,.1f} MB were there")
    overall = report.fidelity.overall
    output.text(f"{report.out}: {report.written_bytes / 1e6:,.1f} MB in {report.elapsed_s:.1f} s")
    if report.hub_requests:
        output.text(f"read from the Hub: {report.hub_bytes / 1e6:,.1f} MB in {report.hub_requests} requests")
    if overall.cosine is not None and overall.norm_ratio is not None:
        output.text(f"fidelity: cosine {overall.cosine:.4f}, norm ratio {overall.norm_ratio:.4f} of what was asked for")
        rows = [(label, kept) for label, kept in overall.kept.items()]
        output.table(("direction", "kept after rounding"), rows)
    if overall.collinear:
        output.note("the directions are nearly parallel: what is kept of each cannot be told apart")
    for line in report.warnings:
        output.warning(line)
