"""Pure core of Tandem: no clock, socket, asyncio, randomness, gRPC or environment in here.

Everything that decides something lives in this package, and the shells around it only carry out
what it decided; so the same code runs in the services and in the simulator.
"""
