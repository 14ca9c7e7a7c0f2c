"""`python -m wsmerge`: the command line."""

from wsmerge.cli import main

if __name__ == "__main__":
    main()
