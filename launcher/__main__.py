"""``python -m launcher`` is the command ``tuneyard``."""

from launcher.cli import main

if __name__ == "__main__":
    main()
