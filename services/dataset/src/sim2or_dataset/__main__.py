"""``python -m sim2or_dataset``: see ``--help``."""

from sim2or_dataset.main import app

if __name__ == "__main__":
    app()
