"""``python -m sim2or_evaluator``: see ``--help``."""

from sim2or_evaluator.main import app

if __name__ == "__main__":
    app()
