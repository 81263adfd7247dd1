"""`python -m elastivid` is the command `elastivid`."""

from elastivid.app.cli import main

if __name__ == "__main__":
    main()
