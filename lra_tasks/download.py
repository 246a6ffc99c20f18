"""Downloads of official files: whole and with the right checksum, or not there at all."""

import os
import shutil
import threading
from pathlib import Path

PROBE_SECONDS = 5.0


def fetch(
    url: str,
    num_bytes: int,
    sha256: str,
    folder: Path,
    progress: bool = True,
    timeout: float = PROBE_SECONDS,
) -> None:
    """Downloads `url` into `folder`, with the download manager of tensorflow-datasets.

    For one process at a time in a folder; what an earlier one left unfinished is removed.

    Args:
      url: http(s) address; its last part is the file's name.
      num_bytes: the file's size.
      sha256: its checksum, hex.
      folder: an existing folder.
      progress: show a bar.
      timeout: seconds within which the server must answer (the download itself may take longer).

    Raises:
      OSError: the server can't be reached, or the file isn't what was expected. Nothing is left.
    """
    _probe(url, timeout)  # the download manager waits without limit and retries for minutes
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.download.checksums import UrlInfo

    if not progress:
        tfds.disable_progress_bar()
    name = url.rsplit("/", 1)[-1]
    known = UrlInfo(size=num_bytes, checksum=sha256, filename=name)
    temporary = folder / "unfinished"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        manager = tfds.download.DownloadManager(
            download_dir=temporary, url_infos={url: known}, force_checksums_validation=True
        )
        os.replace(manager.download(url), folder / name)
    except Exception as error:  # requests' and urllib3's own, NonMatchingChecksumError, ...
        raise OSError(f"download of {url} failed: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _probe(url: str, timeout: float) -> None:
    """Raises OSError unless the server answers for `url` in time."""
    import requests  # what the download manager uses, with the same proxies and certificates

    outcome = []

    def ask():
        try:
            with requests.head(url, timeout=timeout, allow_redirects=True) as response:
                response.raise_for_status()
            outcome.append(None)
        except requests.RequestException as error:
            outcome.append(error)

    # A thread, because looking up a host name has no timeout of its own.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(timeout)
    if not outcome:
        raise OSError(f"{url}: no answer within {timeout:g} s")
    if outcome[0] is not None:
        # requests wraps what urllib3 wrapped; the innermost says it shortest.
        reason = (
            getattr(outcome[0].args[0], "reason", outcome[0]) if outcome[0].args else outcome[0]
        )
        raise OSError(f"{url} can't be reached: {reason}") from outcome[0]
