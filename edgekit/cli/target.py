"""``edgekit target``."""

from __future__ import annotations

from typing import Annotated

import typer

from edgekit.cli import options

app = typer.Typer(
    no_args_is_help=True,
    help="""Where files are measured: this machine, an emulated ARM CPU, a board, a phone.

Examples:

  edgekit target list

  edgekit target setup emulated

  edgekit target check emulated:cortex-a76

  edgekit target setup adb
""",
)


@app.command("list")
def list_targets(as_json: options.AsJson = False) -> None:
    """Show the kinds of targets, and whether they can be used here.

    Examples:

      edgekit target list
    """
    from edgekit.cli import render
    from edgekit.runtimes.targets.check import kinds

    found = kinds()
    if as_json:
        render.print_json(found)
        return
    rows = [
        [one["example"], "ready" if not one["problem"] else "not ready", one["summary"], one["problem"]]
        for one in found
    ]
    render.table("", ("target", "here", "what it is", "what is missing"), rows, left=4)
    for one in found:
        if one["remedy"]:
            render.stderr.print(f"note: {one['kind']}: {one['remedy']}", soft_wrap=True)


@app.command()
def setup(
    kind: Annotated[
        str,
        typer.Argument(
            metavar="KIND[:PLACE]",
            help="The kind of target, or one: emulated, emulated:CPU, adb[:SERIAL], ssh:[USER@]HOST[:PORT].",
            show_default=False,
        ),
    ],
    as_json: options.AsJson = False,
) -> None:
    """Make what a target needs; what is there is kept, and a cut-off set-up goes on.

    Examples:

      edgekit target setup emulated

      edgekit target setup emulated:cortex-a7

      edgekit target setup adb

      edgekit target setup ssh:root@192.168.1.7

    It lies in ~/.cache/edgekit, or where EDGEKIT_CACHE says, needs no root rights, and can be deleted at any time.
    A phone, or a board without Python, is sent one with NumPy and the runtimes (ARM; 140 MB there, less on 32 bits), which
    edgekit makes here first. It lies in the worker's folder there (see: edgekit target check --help).
    """
    from edgekit.cli import render
    from edgekit.runtimes.targets.target import target_kind

    name, _, place = kind.partition(":")
    chosen = target_kind(name)
    with render.progress_bar() as progress:
        made = chosen.setup(progress, place)
    if as_json:
        render.print_json(made)
        return
    versions = ", ".join(f"{name} {version}" for name, version in made["versions"].items())
    render.stdout.print(f"{kind} is set up in {made['folder']} ({render.kib(made['size_bytes'])})", soft_wrap=True)
    render.stdout.print(versions, soft_wrap=True, style="dim")


@app.command()
def check(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="local, emulated:CPU, ssh:[USER@]HOST[:PORT], or adb[:SERIAL].", show_default=False
        ),
    ] = "local",
    as_json: options.AsJson = False,
) -> None:
    """Ask a target what it is and which runtimes it has; exit code 1 if nothing can run there.

    Examples:

      edgekit target check emulated:cortex-a72

      edgekit target check ssh:pi@raspberrypi.local

    On a board or phone the worker lies in ~/.cache/edgekit (/data/local/tmp/edgekit), or where EDGEKIT_TARGET_FOLDER says;
    its Python is what EDGEKIT_TARGET_PYTHON names, else venv/bin/python there, else the one that edgekit target setup sent,
    else python3.
    """
    from edgekit.cli import render
    from edgekit.runtimes.targets.check import check as look

    found = look(target)
    if as_json:
        render.print_json(found.to_dict())
    else:
        rows = [[name, _words(value)] for name, value in found.facts.items() if value not in (None, [], {})]
        rows += [
            [name, f"{one['version']}" if one["usable"] else f"missing: {one['reason']}; {one['install']}"]
            for name, one in found.runtimes.items()
        ]
        render.table("", ("", target), rows, left=2)
        if found.problem:
            render.stdout.print(f"[red]not usable[/red] {found.problem}", soft_wrap=True)
            render.stdout.print(f"  → {found.remedy}", soft_wrap=True, markup=False)
    if found.problem:
        raise typer.Exit(1)


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)
