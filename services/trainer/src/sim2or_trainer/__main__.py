"""``python -m sim2or_trainer``: see ``--help``."""

from sim2or_trainer.main import app

if __name__ == "__main__":
    app()
