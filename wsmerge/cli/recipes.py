"""Commands on recipes: plan and merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from wsmerge.cli.app import app
from wsmerge.cli.options import AsJson, BlockSize, Overwrite, RecipePath, ShardSize, StorePath, Threads, parse_size
from wsmerge.cli.output import Output

if TYPE_CHECKING:
    from wsmerge.api import RecipePlan
    from wsmerge.engine.merge import MergeReport
    from wsmerge.engine.plan import PlanOptions
    from wsmerge.recipe import Row

_PANEL = "Recipes"


@app.command("plan", rich_help_panel=_PANEL)
def plan_command(
    recipe: RecipePath,
    store: StorePath = None,
    max_shard_size: ShardSize = "5GB",
    block_mib: BlockSize = 4,
    threads: Threads = None,
    as_json: AsJson = False,
) -> None:
    """Show what a recipe will do, and write nothing.

    Prints, for each direction, which coefficient k applies in which layers and modules and which line of the recipe
    gave it; then the output files, the bytes to read and write, and the peak memory.

    Example: wsmerge plan recipe.yml
    """
    from wsmerge import api
    from wsmerge.registry import Store

    options = _options(max_shard_size, block_mib, threads)
    with api.plan(recipe, store=Store(store) if store else None, options=options) as planned:
        _print_plan(Output(as_json=as_json), planned)


@app.command("merge", rich_help_panel=_PANEL)
def merge_command(
    recipe: RecipePath,
    out: Annotated[Path, typer.Argument(help="Folder to make; it appears when all of it is on the disk.")],
    overwrite: Overwrite = False,
    store: StorePath = None,
    max_shard_size: ShardSize = "5GB",
    block_mib: BlockSize = 4,
    threads: Threads = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and print the plan only.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the checkpoint that a recipe describes.

    The recipe is checked against its base and directions before any weight is read. A merge that fails, or is
    interrupted with Ctrl-C, leaves nothing behind; one that was killed goes on where it stopped when started again.

    A recipe, whose paths are seen from the folder you are in:

        base_model: HuggingFaceTB/SmolLM2-135M-Instruct
        directions:
          - direction: sycophancy@1.0.0   # or ./folder
            weight: -0.5                  # one k; often between -1 and 1
          - direction: formality
            weight:                       # or rules: the first that matches a tensor wins
              - filter: mlp               # substring of the tensor name
                value: [0, 1, 0.5]        # gradient over the layers
              - layers: 8-15              # inclusive; or 8, or [0-3, 8]
                value: 0.5
        out_dtype: bfloat16

    Fidelity tells what rounding left of the directions: cosine 1 and norm ratio 1 are all of it; float32 output loses
    nothing. In bfloat16 0.9 is usual for small k.

    Example: wsmerge merge recipe.yml steered/
    """
    from wsmerge import api
    from wsmerge.registry import Store

    output = Output(as_json=as_json)
    options = _options(max_shard_size, block_mib, threads)
    with api.plan(recipe, store=Store(store) if store else None, options=options) as planned:
        if dry_run:
            api.check_out(planned, out, overwrite=overwrite)
            _print_plan(output, planned)
            return
        with output.progress(f"merging into {out}") as progress:
            report = api.merge(planned, out, overwrite=overwrite, progress=progress)
    _print_report(output, report)


def _options(max_shard_size: str, block_mib: int, threads: int | None) -> PlanOptions:
    from wsmerge.engine.plan import PlanOptions

    return PlanOptions(parse_size(max_shard_size), block_mib << 20, threads)


def _print_plan(output: Output, planned: RecipePlan) -> None:
    from wsmerge.recipe import coefficient_table

    tables = [coefficient_table(item) for item in planned.coefficients]
    output.data(planned.merge.to_dict() | {"coefficients": _tables_json(planned, tables)})
    for direction, rows in zip(planned.directions, tables, strict=True):
        _print_table(output, direction.label, rows)
    _print_costs(output, planned)


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
    output.text(f"base: {merge.base.label}, {changed} of {len(merge.tensors)} tensors change")
    output.text(f"reads {merge.read_bytes / 1e6:,.1f} MB, writes {merge.write_bytes / 1e6:,.1f} MB")
    output.text(f"peak memory at most {merge.peak_bytes / 1e6:,.0f} MB")


def _print_report(output: Output, report: MergeReport) -> None:
    output.data(
        {
            "out": str(report.out),
            "elapsed_s": report.elapsed_s,
            "resumed_bytes": report.resumed_bytes,
            "written_bytes": report.written_bytes,
            "outputs": dict(report.outputs),
            "fidelity": report.fidelity.to_dict(),
            "warnings": list(report.warnings),
        }
    )
    if report.resumed_bytes:
        output.note(f"went on with an earlier run that was killed: {report.resumed_bytes / 1e6:,.1f} MB were there")
    overall = report.fidelity.overall
    output.text(f"{report.out}: {report.written_bytes / 1e6:,.1f} MB in {report.elapsed_s:.1f} s")
    if overall.cosine is not None and overall.norm_ratio is not None:
        output.text(f"fidelity: cosine {overall.cosine:.4f}, norm ratio {overall.norm_ratio:.4f} of what was asked for")
        rows = [(label, kept) for label, kept in overall.kept.items()]
        output.table(("direction", "kept after rounding"), rows)
    if overall.collinear:
        output.note("the directions are nearly parallel: what is kept of each cannot be told apart")
    for line in report.warnings:
        output.warning(line)
