"""`python -m stagecli`, which is also what `accelerate launch -m stagecli train ...` runs."""

from stagecli.cli import main

if __name__ == "__main__":
    main()
