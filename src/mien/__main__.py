"""`python -m mien` is `mien`."""

from mien.apps.cli.main import main

if __name__ == "__main__":
    main()
