"""``python -m autometa.experiment``."""

from autometa.experiment.commands import app

if __name__ == "__main__":
    app()
