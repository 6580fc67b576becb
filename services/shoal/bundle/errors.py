"""Why can a bundle not be used?"""

from __future__ import annotations

from pathlib import Path


class BundleError(Exception):
    """A bundle that cannot be used; the message says which file, why, and what to do."""


class BundleFileMissingError(BundleError):
    """A file that the bundle needs is not there."""

    def __init__(self, path: Path, why: str) -> None:
        """why: what the file is needed for."""
        super().__init__(f"{path} is missing: {why}")
        self.path = path


class BundleDamagedError(BundleError):
    """A file does not have the checksum that the card states."""

    def __init__(self, path: Path, expected: str, actual: str) -> None:
        """expected, actual: SHA-256, in hexadecimal."""
        super().__init__(
            f"{path} is damaged: its SHA-256 is {actual}, the card says {expected}. Fetch or "
            f"export the bundle again"
        )
        self.path = path


class BundleInvalidError(BundleError):
    """The card, or a file of a published model, says something that cannot be used."""


class DeviceUnavailableError(BundleError):
    """The device asked for is not there, or this build of ONNX Runtime cannot use it."""
