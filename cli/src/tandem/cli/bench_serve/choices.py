"""What the command line offers to choose from; quick to import. Pure."""

from __future__ import annotations

from enum import Enum


class Api(Enum):
    """How a server is asked."""

    COMPLETIONS = "completions"
    CHAT = "chat"
    GENERATE = "generate"

    @property
    def path(self) -> str:
        """Below the server's URL."""
        return {Api.COMPLETIONS: "/v1/completions", Api.CHAT: "/v1/chat/completions"}.get(self, "/generate")


class WorkloadName(Enum):
    """Synthetic workloads."""

    RANDOM = "random"
    CHAT = "chat"
    RAG = "rag"
    AGENT = "agent"


class Arrivals(Enum):
    """How requests come."""

    POISSON = "poisson"
    CONSTANT = "constant"
