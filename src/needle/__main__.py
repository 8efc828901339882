"""`python -m needle` does what the command `needle` does."""

from needle.cli import main

if __name__ == "__main__":
    main()
