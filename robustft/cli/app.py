"""The verbs, and what becomes of errors.

A verb's module is imported when the verb is called, after its words are understood: `robustft` and
every `--help` need no torch, and `doctor` asks torch where an NVIDIA driver is, alone.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

from robustft import __version__, progress
from robustft.cli.options import did_you_mean
from robustft.errors import DivergedError, InputError, InputWarning, LostProcessError
from robustft.optional import MissingExtraError, require


class Verb(NamedTuple):
    """A verb's function and the dataclass of its options, each in a module of robustft.cli; the
    options' needs no torch."""

    function: str
    options: str
    help: str


VERBS = {
    "demo": Verb(
        "demo.demo",
        "demo_options.DemoOptions",
        "Methods compared on real handwriting, in minutes.",
    ),
    "init": Verb(
        "init.init", "init_options.InitOptions", "Write a run.yaml for the data that are here."
    ),
    "train": Verb(
        "train.train", "train_options.TrainOptions", "Fine-tune a model and evaluate it."
    ),
    "compare": Verb(
        "compare.compare",
        "compare_options.CompareOptions",
        "Compare methods on one budget, and ensembles.",
    ),
    "eval": Verb(
        "evaluate.evaluate", "eval_options.EvalOptions", "Evaluate a tuned or zero-shot model."
    ),
    "wise-ft": Verb(
        "ensembles.wise_ft", "ensemble_options.WiseFTOptions", "Mix both models at every weight."
    ),
    "ose": Verb(
        "ensembles.ose", "ensemble_options.OSEOptions", "Mix both models' outputs at every weight."
    ),
    "soup": Verb(
        "ensembles.soup", "ensemble_options.SoupOptions", "Average several fine-tuned models."
    ),
    "vrf": Verb(
        "ensembles.vrf", "ensemble_options.VRFOptions", "Weigh both models sample by sample."
    ),
    "embed": Verb(
        "embed.embed", "embed_options.EmbedOptions", "Compute a frozen model's features once."
    ),
    "recipes": Verb(
        "recipes.recipes", "recipes.RecipesOptions", "Published runs for train --recipe."
    ),
    "data ls": Verb(
        "data.ls", "data_options.ListOptions", "Registered data sets, and where they are."
    ),
    "data check": Verb(
        "data.check", "data_options.CheckOptions", "Compare data sets with their counts."
    ),
    "import": Verb(
        "exchange.import_", "exchange_options.ImportOptions", "Read other projects' checkpoints."
    ),
    "export": Verb(
        "exchange.export",
        "exchange_options.ExportOptions",
        "Write open_clip's files, a hub folder.",
    ),
    "verify": Verb(
        "verify.verify", "verify_options.VerifyOptions", "Ask a card's kernels for right numbers."
    ),
    "tune": Verb(
        "tune.tune", "tune_options.TuneOptions", "Find what is fastest on this machine's card."
    ),
    "report": Verb("report.report", "report.ReportOptions", "Tables and plots from result files."),
    "completion": Verb(
        "completion.completion",
        "completion.CompletionOptions",
        "Let the shell complete options.",
    ),
    "doctor": Verb(
        "doctor.doctor",
        "doctor.DoctorOptions",
        "Versions, devices, backends; why one does not run.",
    ),
}
#: What an installation without extras has, too.
BARE = ("doctor", "verify", "tune")
#: What the processes of a launch do together.
SHARED = ("train", "embed", "eval", "wise-ft", "ose", "soup", "vrf")


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
        except SystemExit as stop:  # a verb's own code, or argparse's after --help
            return int(stop.code or 0)
        except KeyboardInterrupt as error:
            return _fail(str(error) or "interrupted", 130)
        except (DivergedError, LostProcessError) as error:
            return _fail(str(error), 1)
        except (InputError, MissingExtraError) as error:
            return _fail(str(error))
        except BrokenPipeError:  # who reads has seen enough: robustft recipes | head
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes again
            return 141  # 128 and SIGPIPE, which Windows has not
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            return _fail(f"{error.strerror or error}{where}")
        except MemoryError as error:
            return _fail(f"out of memory {error}; try a smaller --batch-size")
        except Exception as error:
            if type(error).__name__ == "OutOfMemoryError":  # torch's, without importing torch
                return _fail("out of GPU memory; try a smaller --batch-size")
            raise


def _run(words: list[str]) -> int:
    if not words:
        from robustft.cli import start

        print(start.page())
        return 0
    name, *rest = words
    if name in ("--help", "--version"):
        print(f"robustft {__version__}" if name == "--version" else _help())
        return 0
    if name == "data":
        under = [verb.partition(" ")[2] for verb in VERBS if verb.startswith("data ")]
        if not rest or rest[0] not in under:
            got = rest[0] if rest else "nothing"
            raise InputError(f"data: got {got!r}, expected {' or '.join(under)}")
        name = f"data {rest.pop(0)}"
    if name not in VERBS:
        kind = "option" if name.startswith("-") else "command"
        raise InputError(f"No such {kind} {name!r}; {did_you_mean(name, VERBS)}")
    rank = int(os.environ.get("RANK", 0))
    if name not in SHARED and rank > 0:
        return 0  # under torchrun: the first process does it, once
    if name not in BARE:
        require("yaml", extra="train")
    verb = VERBS[name]
    kind = found(verb.options)
    parser = importlib.import_module("robustft.cli.parser")
    options = parser.parse(name, kind, kind.__doc__, rest)
    function: Callable[[Any], None] = found(verb.function)
    with progress.showing(rank == 0):
        if int(os.environ.get("WORLD_SIZE", 1)) > 1 and name in SHARED:
            _together(function, options)
        else:
            function(options)
    return 0


def found(where: str) -> Any:
    """What a `Verb` names."""
    module, _, name = where.rpartition(".")
    return getattr(importlib.import_module(f"robustft.cli.{module}"), name)


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


def _help() -> str:
    return (
        "Usage: robustft VERB [OPTIONS]\n\n"
        "  Robust fine-tuning of CLIP: R-Adapter, DiVE, VRF, their baselines and evaluation.\n"
        "\nVerbs:\n"
        + "".join(f"  {name:10} {verb.help}\n" for name, verb in VERBS.items())
        + "\nOptions:\n  --version  Print the version.\n"
        "  --help     Print this; robustft VERB --help lists a verb's options."
    )


def _show(
    usual: Callable[..., None], message: Warning | str, kind: type[Warning], *where: Any
) -> None:
    if issubclass(kind, InputWarning):
        with progress.aside():
            print(f"robustft: {_line(str(message))}", file=sys.stderr)
    else:
        usual(message, kind, *where)


def _fail(message: str, code: int = 2) -> int:
    """Say in one line what ended the command, once where all processes of a launch meet it."""
    first = True
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from robustft.train import processes

        first = processes.first_to_say(message)
    if first:
        print(f"robustft: {_line(message)}", file=sys.stderr)
    return code


def _line(text: str) -> str:
    """In one line, whatever the message quotes."""
    return " ".join(part.strip() for part in text.splitlines() if part.strip())
