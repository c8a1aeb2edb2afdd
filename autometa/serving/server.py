"""Run the application under uvicorn, in one process or several."""

from __future__ import annotations

import logging
import os
import tempfile

from autometa.serving.metrics import FOLDER_VARIABLE
from autometa.serving.settings import KEY_VARIABLE, ServiceSettings, api_key

_GRACE_SECONDS = 10
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def serve(settings: ServiceSettings, *, host: str = "127.0.0.1", port: int = 8000, workers: int = 1) -> None:
    """Serve until SIGINT or SIGTERM; open requests get 10 s to end.

    Parameters
    ----------
    settings : ServiceSettings
    host : str, default="127.0.0.1"
        "0.0.0.0" for all interfaces; set an API key in the environment then.
    port : int, default=8000
    workers : int, default=1
        Processes, each with the model in memory.

    Raises
    ------
    ArtefactError
        The model cannot be loaded; found out before a port is opened.
    ImportError
        The extra is not installed.
    """
    try:
        import uvicorn

        from autometa.serving.app import create_app
    except ModuleNotFoundError as error:
        raise ImportError(f"Serving needs {error.name}. Install it with: pip install 'autometa-ml[serve]'") from error

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s")
    if host not in _LOOPBACK and api_key() is None:
        logging.getLogger("autometa.serving").warning(
            "Anyone who reaches %s can ask and adapt this model: set %s to ask for a key.", host, KEY_VARIABLE
        )
    options = {"host": host, "port": port, "access_log": False, "timeout_graceful_shutdown": _GRACE_SECONDS,
               "log_level": "warning", "server_header": False}  # fmt: skip
    if workers == 1:
        uvicorn.run(create_app(settings, key=api_key()), **options)  # type: ignore[arg-type]
        return
    create_app(settings)  # a broken model is told once, not by each worker
    with tempfile.TemporaryDirectory(prefix="autometa-metrics-") as folder:
        os.environ.setdefault(FOLDER_VARIABLE, folder)
        settings.to_environment()
        uvicorn.run("autometa.serving.app:create_app_from_environment", factory=True, workers=workers, **options)  # type: ignore[arg-type]
