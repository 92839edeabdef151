"""The ``edgekit`` command."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from edgekit.arithmetic import prepare
from edgekit.cli.advise import advise
from edgekit.cli.bench import app as bench
from edgekit.cli.compare import compare
from edgekit.cli.compress import compress
from edgekit.cli.demo import demo
from edgekit.cli.export import export
from edgekit.cli.inspect import inspect
from edgekit.cli.layers import layers
from edgekit.cli.target import app as target
from edgekit.cli.verify import verify
from edgekit.errors import EdgekitError

app = typer.Typer(
    name="edgekit",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Take a trained model and turn it into files that run, small and fast, on phones and edge devices, and prove it.

Examples:

  edgekit demo                                                    the whole path on embedded data

  edgekit compress zoo:digits-cnn --data digits --step prune-channels:macs=0.5 --step quantize -o small

  edgekit export small --to onnx --to tflite --to ncnn

  edgekit bench small --data digits
""",
)
for command in (inspect, advise, compress, export, verify):
    app.command()(command)
bench.command()(compare)
bench.command()(layers)
app.add_typer(bench, name="bench", help="Measure files side by side; compare results; look at layers.")
app.command()(demo)
app.add_typer(target, name="target")


def _version(show: bool) -> None:
    if show:
        from importlib.metadata import version

        typer.echo(f"edgekit {version('edgekit')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Holds the options of ``edgekit`` itself."""


class _StoppedError(BaseException):
    """A signal asks for the end. No KeyboardInterrupt: Click would swallow that, and what is to be said with it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = signal.Signals(number)


def _stop(number: int, _: FrameType | None) -> None:
    """Ends the command with all its clean-up: an end by default would leave folders and processes behind."""
    signal.signal(number, signal.SIG_DFL)  # asked twice, it ends at once
    raise _StoppedError(number)


def main() -> None:
    """Runs the command; every error of ours is one message and an exit code."""
    prepare()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup and shells' background jobs ignore some on purpose
            signal.signal(number, _stop)
    try:
        app()
    except EdgekitError as error:
        _say(error.what, error.remedy)
        sys.exit(error.exit_code)
    except _StoppedError as stopped:
        what = "interrupted" if stopped.signal == signal.SIGINT else f"ended by {stopped.signal.name}"
        _say(what, "The same command goes on where this one stopped.")
        sys.exit(128 + stopped.signal)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if os.environ.get("EDGEKIT_DEBUG"):
            raise
        kind = type(error).__name__
        _say(f"unexpected {kind}: {error}", "This is a bug of edgekit. EDGEKIT_DEBUG=1 shows where it happened.")
        sys.exit(1)


def _say(what: str, remedy: str) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), what))
    if remedy:
        console.print(Text.assemble(("  → ", "bold"), remedy))


if __name__ == "__main__":
    main()
