"""The command that moves a direction between payloads: convert."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wsmerge.cli.options import AsJson, StorePath
from wsmerge.cli.output import Output

app = typer.Typer()


@app.command("convert", rich_help_panel="Registry")
def convert_command(
    reference: Annotated[str, typer.Argument(help="name, name@1.2.0, name@alias, name@sha256:HEX, or ./folder.")],
    payload: Annotated[str, typer.Option("--to", help="safetensors or zarr.")],
    out: Annotated[Path, typer.Option("--out", help="Folder to make; it appears whole, or not at all.")],
    codec: Annotated[
        str,
        typer.Option(
            help="Of a zarr payload: zstd, blosc, pcodec (smallest; who reads it needs pip install pcodec), none, or auto, "
            "the smaller of the first two for each array."
        ),
    ] = "auto",
    store: StorePath = None,
    as_json: AsJson = False,
) -> None:
    """Write a direction with its tensors in another format. Nothing is lost: content and version digest stay.

    safetensors is what PEFT loads; zarr is compressed, and read in parts from any zarr store.

    Example: wsmerge convert sycophancy --to zarr --out sycophancy-zarr
    """
    from wsmerge.api.convert import convert
    from wsmerge.registry import open_reference, open_registry
    from wsmerge.registry.convert import check_payload, payload_bytes
    from wsmerge.registry.payloads import check_codec

    output = Output(as_json=as_json)
    wanted, packed = check_payload(payload), check_codec(codec)
    with (
        open_reference(reference, open_registry(store)) as direction,
        convert(direction, wanted, out, codec=packed) as converted,
    ):
        sizes = payload_bytes(direction.files), payload_bytes(converted.files)
        output.data(
            {
                "path": str(out),
                "payload": wanted,
                "payload_bytes": sizes[1],
                "payload_bytes_before": sizes[0],
                "version_digest": converted.digest,
                "content_digest": converted.manifest.content_digest,
            }
        )
        output.text(f"{converted.label}: version digest {converted.digest}, as before")
        output.text(f"at {out}: {sizes[1] / 1e6:,.1f} MB of tensors; {sizes[0] / 1e6:,.1f} MB before")
