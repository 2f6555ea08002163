"""Puts tandem_torchvision_shim.pth into the root of site-packages; everything else is in pyproject.toml."""

from __future__ import annotations

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PTH = "tandem_torchvision_shim.pth"


class BuildWithPth(build_py):
    """build_py that also copies the .pth file, which setuptools has no setting for."""

    def run(self) -> None:
        """Builds, then copies."""
        super().run()
        self.copy_file(str(Path("src") / PTH), str(Path(self.build_lib) / PTH))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        """What `run` makes."""
        return [*super().get_outputs(include_bytecode), str(Path(self.build_lib) / PTH)]


setup(cmdclass={"build_py": BuildWithPth})
