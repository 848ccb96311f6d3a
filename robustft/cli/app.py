"""The verbs, and what becomes of errors."""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer

from robustft import __version__
from robustft.cli import demo, doctor, ensembles, evaluate, options, report, runs, train
from robustft.errors import InputError, InputWarning
from robustft.extras import MissingExtraError

app = typer.Typer(
    name="robustft",
    help="Robust fine-tuning of CLIP: R-Adapter, DiVE, VRF, their baselines and their evaluation.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", help="Print the version."),
) -> None:
    if version:
        typer.echo(f"robustft {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("demo")(options.command(demo.DemoOptions, demo.demo))
app.command("train")(options.command(runs.TrainOptions, train.train))
app.command("eval")(options.command(evaluate.EvalOptions, evaluate.evaluate))
app.command("wise-ft")(options.command(ensembles.WiseFTOptions, ensembles.wise_ft))
app.command("vrf")(options.command(ensembles.VRFOptions, ensembles.vrf))
app.command("report")(options.command(report.ReportOptions, report.report))
app.command("doctor")(doctor.doctor)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (0, 1 for doctor's findings, 2, 130)."""
    with warnings.catch_warnings():
        warnings.showwarning = functools.partial(_show, warnings.showwarning)
        return _run(arguments)


def _show(
    usual: Callable[..., None], message: Warning | str, kind: type[Warning], *where: Any
) -> None:
    if issubclass(kind, InputWarning):
        print(f"robustft: {message}", file=sys.stderr)
    else:
        usual(message, kind, *where)


def _run(arguments: list[str] | None) -> int:
    try:
        app(args=arguments, standalone_mode=False)
    except typer.Exit as error:
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        print("robustft: interrupted", file=sys.stderr)
        return 130
    except (InputError, MissingExtraError) as error:
        return _refuse(str(error))
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        return _refuse(f"{error.strerror or error}{where}")
    except Exception as error:
        # click's own usage errors, without importing click for its name
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            return _refuse(error.format_message())
        raise
    return 0


def _refuse(message: str) -> int:
    print(f"robustft: {message}", file=sys.stderr)
    return 2
