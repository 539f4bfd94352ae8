"""The command line. Exit codes: 0 done, 1 error told in one line, 2 usage, 130 interrupted and resumable."""

from __future__ import annotations

import gc
import importlib
import logging
import sys

EXIT_ERROR = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


def main() -> None:
    """Run the command line and leave with its exit code."""
    # What is imported stays: looking for garbage meanwhile, and in it later, takes a tenth of the start.
    gc.disable()
    importlib.import_module("quantailor.cli.app")
    gc.freeze()
    gc.enable()
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """Run one command and return its exit code."""
    import typer
    from typer.exceptions import TyperException

    from quantailor.cli.advice import home_of, with_home
    from quantailor.cli.app import app
    from quantailor.cli.output import print_error, print_json_error
    from quantailor.errors import Interrupted, QuantailorError

    # Errors are told once, in one line; what a log would add is for people who configure one.
    logging.getLogger("quantailor").addHandler(logging.NullHandler())
    try:
        code = app(arguments, prog_name="quantailor", standalone_mode=False)
    except Interrupted as error:
        sys.stderr.write(f"{with_home(str(error), home_of(arguments))}\n")
        return EXIT_INTERRUPTED
    except QuantailorError as error:
        remedy = None if error.remedy is None else with_home(error.remedy, home_of(arguments))
        if "--json" in arguments:
            print_json_error(next((word for word in arguments if not word.startswith("-")), ""), error, remedy)
        print_error(error, remedy)
        return EXIT_ERROR
    except typer.Abort:
        return EXIT_INTERRUPTED
    except TyperException as error:
        _tell_usage(error)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        return EXIT_ERROR
    return code if isinstance(code, int) else 0


def _tell_usage(error: Exception) -> None:
    """Let the error show itself with the command's usage, as Typer's do."""
    show = getattr(error, "show", None)
    if show is None:
        sys.stderr.write(f"{error}\n")
    else:
        show()
