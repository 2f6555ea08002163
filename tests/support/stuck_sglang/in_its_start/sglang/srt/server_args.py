"""Stands in for SGLang's module of this name."""

from __future__ import annotations

import argparse


class ServerArgs:
    """As sglang.srt.server_args.ServerArgs, without an argument."""

    @staticmethod
    def add_cli_args(parser: argparse.ArgumentParser) -> None:
        """Adds nothing."""
