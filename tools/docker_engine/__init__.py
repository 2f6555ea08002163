"""A Docker engine for tests, on machines that have none.

Where an engine answers, that one is used. Else, as root on a machine with Debian's packages, the engine, Compose and
buildx are installed, and an engine is started that keeps images and containers in a folder of its own. At its end what
it did to the machine's network is undone. docs/compose.md tells how tests use it.
"""
