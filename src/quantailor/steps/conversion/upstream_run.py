"""One run of llama.cpp's converter for a step, whatever it is to make."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from quantailor.models import upstream
from quantailor.session import Workspace
from quantailor.steps.options import Conversion
from quantailor.steps.stages import Stages


def located(conversion: Conversion, stages: Stages) -> upstream.Converter:
    """The converter that was named, or the one that is found. Raises ConverterError, OutputError."""
    return upstream.locate(None if conversion.converter is None else Path(conversion.converter), begin=stages.begin)


def run_converter(
    workspace: Workspace,
    stages: Stages,
    converter: upstream.Converter,
    folder: Path,
    output: Path,
    *,
    stage: str,
    trust_remote_code: bool,
    overwrite: bool,
    product: upstream.Product | None = None,
    on_whole: Callable[[Path], None] | None = None,
) -> None:
    """Let it write one file of a checkpoint, `product` and `on_whole` as of `upstream.convert_directory`, which says what is raised.

    Its output is kept in the home's logs where it fails, under the stage's name.
    """
    python = upstream.interpreter(begin=stages.begin)
    name = hashlib.sha256(str(output).encode(errors="surrogateescape")).hexdigest()[:12]
    upstream.convert_directory(
        folder,
        output,
        converter=converter,
        python=python,
        log=workspace.home.logs / f"{stage}-{name}.log",
        control=stages.begin(stage),
        overwrite=overwrite,
        trust_remote_code=trust_remote_code,
        product=product,
        on_whole=on_whole,
    )
