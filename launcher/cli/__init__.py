"""The command line: one small module per verb; errors become text and exit codes here and nowhere else."""

import sys


def main() -> None:
    """Run ``tuneyard``; exits 0 ok, 1 run failed, 2 user error, 3 cluster error, 130 interrupted."""
    from launcher.contract.files import DamagedFile
    from launcher.errors import SpecError, TuneyardError

    from .app import app

    try:
        app(prog_name="tuneyard")
    except TuneyardError as error:
        # A spec's problems begin with their place, file:line:col, as editors and compilers want it.
        head = "" if isinstance(error, SpecError) else "error: "
        print(f"{head}{error}", file=sys.stderr)
        if isinstance(error, SpecError):
            print(f"problems: {len(error.problems)}; nothing was submitted", file=sys.stderr)
        sys.exit(error.exit_code)
    except DamagedFile as error:
        print(
            f"error: {error}; nothing was done\nhint: put a copy of it back; what lies beside it is whole",
            file=sys.stderr,
        )
        sys.exit(2)
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
