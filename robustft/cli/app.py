"""The verbs, and what becomes of errors.

A verb's module is imported when the verb is called: `--help` needs neither typer nor torch, and
`doctor` asks torch where an NVIDIA driver is, alone.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from robustft import __version__
from robustft.errors import DivergedError, InputError, InputWarning, LostProcessError
from robustft.optional import MissingExtraError, require


class Verb(NamedTuple):
    """Where a verb is: a module of robustft.cli, its function, and the options' dataclass."""

    module: str
    function: str
    options: str
    help: str


VERBS = {
    "demo": Verb(
        "demo", "demo", "DemoOptions", "Methods compared on real handwriting, in minutes."
    ),
    "train": Verb("train", "train", "TrainOptions", "Fine-tune a model and evaluate it."),
    "compare": Verb(
        "compare", "compare", "CompareOptions", "Compare methods on one budget, and ensembles."
    ),
    "eval": Verb("evaluate", "evaluate", "EvalOptions", "Evaluate a tuned or zero-shot model."),
    "wise-ft": Verb("ensembles", "wise_ft", "WiseFTOptions", "Mix both models at every weight."),
    "ose": Verb("ensembles", "ose", "OSEOptions", "Mix both models' outputs at every weight."),
    "soup": Verb("ensembles", "soup", "SoupOptions", "Average several fine-tuned models."),
    "vrf": Verb("ensembles", "vrf", "VRFOptions", "Weigh both models sample by sample."),
    "embed": Verb("embed", "embed", "EmbedOptions", "Compute a frozen model's features once."),
    "recipes": Verb("recipes", "recipes", "RecipesOptions", "Published runs for train --recipe."),
    "data ls": Verb("data", "ls", "ListOptions", "Registered data sets, and where they are."),
    "data check": Verb("data", "check", "CheckOptions", "Compare data sets with their counts."),
    "import": Verb("exchange", "import_", "ImportOptions", "Read other projects' checkpoints."),
    "export": Verb("exchange", "export", "ExportOptions", "Write open_clip's files, a hub folder."),
    "verify": Verb("verify", "verify", "VerifyOptions", "Ask a card's kernels for right numbers."),
    "tune": Verb("tune", "tune", "TuneOptions", "Find what is fastest on this machine's card."),
    "report": Verb("report", "report", "ReportOptions", "Tables and plots from result files."),
    "completion": Verb(
        "completion", "completion", "CompletionOptions", "Let the shell complete options."
    ),
}
#: What the processes of a launch do together.
SHARED = ("train", "embed", "eval", "wise-ft", "ose", "soup", "vrf")
_DOCTOR = (
    "List versions, devices and backends, with the reason where one does not run, and what data "
    "sets --data-location holds."
)


def run(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0; 1 for training that diverged; 2 for what the user can mend; 130 after Ctrl-C
    (128 plus the number of any other signal).
    """
    with warnings.catch_warnings():
        warnings.showwarning = functools.partial(_show, warnings.showwarning)
        try:
            status = _run(list(sys.argv[1:] if arguments is None else arguments))
            sys.stdout.flush()
            return status
        except KeyboardInterrupt as error:
            print(f"robustft: {_line(str(error)) or 'interrupted'}", file=sys.stderr)
            return 130
        except (DivergedError, LostProcessError) as error:
            print(f"robustft: {_line(str(error))}", file=sys.stderr)
            return 1
        except (InputError, MissingExtraError) as error:
            return _refuse(str(error))
        except BrokenPipeError:  # who reads has seen enough: robustft recipes | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again
            return 141  # 128 and SIGPIPE, which Windows has not
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            return _refuse(f"{error.strerror or error}{where}")
        except MemoryError as error:
            return _refuse(f"out of memory {error}; try a smaller --batch-size")
        except Exception as error:
            code, message = (
                getattr(error, "exit_code", None),
                getattr(error, "format_message", None),
            )
            if message is not None:  # click's usage errors, without importing click for its name
                return _refuse(message())
            if isinstance(code, int):  # typer.Exit
                return code
            if type(error).__name__ == "OutOfMemoryError":  # torch's, likewise
                return _refuse("out of GPU memory; try a smaller --batch-size")
            raise


def _run(arguments: list[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("--help", "--version"):
        print(f"robustft {__version__}" if name == "--version" else _help())
        return 0
    if name == "doctor":
        return _doctor(rest)
    if name == "data":
        under = [verb.partition(" ")[2] for verb in VERBS if verb.startswith("data ")]
        if not rest or rest[0] not in under:
            got = rest[0] if rest else "nothing"
            raise InputError(f"data: got {got!r}, expected {' or '.join(under)}")
        name = f"data {rest.pop(0)}"
    if name not in VERBS:
        kind = "option" if name.startswith("-") else "command"
        near = difflib.get_close_matches(name, [*VERBS, "doctor"], n=1)
        hint = f"did you mean {near[0]}?" if near else f"expected {', '.join(VERBS)} or doctor"
        raise InputError(f"No such {kind} {name!r}; {hint}")
    if name not in SHARED and int(os.environ.get("RANK", 0)) > 0:
        return 0  # under torchrun: the first process does it, once
    require("yaml", extra="train")
    typer = require("typer", extra="train")
    verb = VERBS[name]
    module = importlib.import_module(f"robustft.cli.{verb.module}")
    options = importlib.import_module("robustft.cli.options")
    function: Callable[[Any], None] = getattr(module, verb.function)
    kind = getattr(module, verb.options)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
    app.command(name, help=function.__doc__)(options.command(kind))
    # The verb runs outside typer, which would turn an interrupt into a code without a word.
    found = app(args=rest, prog_name=f"robustft {name}", standalone_mode=False)
    if isinstance(found, kind):
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and name in SHARED:
            _together(function, found)
        else:
            function(found)
        return 0
    return found if isinstance(found, int) else 0  # after --help


def _together(function: Callable[[Any], None], options: Any) -> None:
    """Run a verb on one of several processes, of which the main one says it all."""
    from robustft.train import processes

    with contextlib.ExitStack() as stack:
        if not processes.main():
            warnings.simplefilter("ignore", InputWarning)
            nowhere = stack.enter_context(open(os.devnull, "w"))
            stack.enter_context(contextlib.redirect_stdout(nowhere))
        try:
            function(options)
        except Exception as error:
            if not processes.lost_another(error):
                raise
            raise LostProcessError(
                f"process {processes.rank()} lost another one, whose own message says why "
                f"({str(error).splitlines()[0]})"
            ) from error
    processes.part()


def _doctor(rest: list[str]) -> int:
    flags: dict[str, str | None] = {"--data-location": None, "--data-module": None}
    if rest == ["--help"]:
        print(f"Usage: robustft doctor [--data-location ROOT] [--data-module FILE]\n\n  {_DOCTOR}")
        return 0
    words = [part for word in rest for part in word.split("=", 1 if word.startswith("--") else 0)]
    for key, value in zip(words[::2], [*words[1::2], None], strict=False):
        if key not in flags or value is None:
            raise InputError(f"doctor: got {key!r}, expected {' ROOT or '.join(flags)} FILE")
        flags[key] = value
    location, module = flags.values()
    if module is not None and location is None:
        raise InputError("doctor: got --data-module without --data-location, expected both")
    from robustft.cli.doctor import doctor

    doctor()
    if location is not None:
        from robustft.cli import data

        if module is not None:
            from robustft.cli.roots import bring

            bring(module)
        print()
        data.print_found(Path(location))
    return 0


def _help() -> str:
    verbs = {name: verb.help for name, verb in VERBS.items()} | {"doctor": _DOCTOR}
    return (
        "Usage: robustft VERB [OPTIONS]\n\n"
        "  Robust fine-tuning of CLIP: R-Adapter, DiVE, VRF, their baselines and evaluation.\n"
        "\nVerbs:\n"
        + "".join(f"  {name:10} {text}\n" for name, text in verbs.items())
        + "\nOptions:\n  --version  Print the version.\n"
        "  --help     Print this; robustft VERB --help lists a verb's options."
    )


def _show(
    usual: Callable[..., None], message: Warning | str, kind: type[Warning], *where: Any
) -> None:
    if issubclass(kind, InputWarning):
        print(f"robustft: {_line(str(message))}", file=sys.stderr)
    else:
        usual(message, kind, *where)


def _refuse(message: str) -> int:
    print(f"robustft: {_line(message)}", file=sys.stderr)
    return 2


def _line(text: str) -> str:
    """In one line, whatever the message quotes."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())
