"""`python -m kifuse`."""

from kifuse.cli import main

if __name__ == "__main__":
    main()
