"""``python -m sim2or_sim``: see ``--help``."""

from sim2or_sim.main import app

if __name__ == "__main__":
    app()
