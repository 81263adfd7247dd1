"""Options that several commands have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

DEFAULT_INDEX = Path("library.ev")

IndexOption = Annotated[
    Path, typer.Option("--index", envvar="ELASTIVID_INDEX", help="Folder of the index.", show_default=True)
]
DownloadOption = Annotated[
    bool, typer.Option("--allow-download", help="Fetch an hf: model that is not in the local cache.")
]
LicenceOption = Annotated[str, typer.Option(help="any, or permissive: refuse weights that state another licence.")]
LimitSecondsOption = Annotated[
    float | None, typer.Option(min=0.001, help="Stop reading a file after this time [default: 14400].")
]
LimitMemoryOption = Annotated[
    int | None, typer.Option(min=1, help="Megabytes that reading a file may take [default: 4096].")
]
BudgetOption = Annotated[str | None, typer.Option(help="What may be spent, such as 20x or 1gmacs; see plan.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a setting; may be given several times.")
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
