"""A cluster that serves, on a virtual clock: how fast it is, by what its engines and links cost.

`tandem.cli.sim` asks whether rooms can go wrong; this asks what they take. Workers are chosen by the policies of
tandem.core, the same code as in the gateway. What a batch takes comes of `costs`, and nothing is random here.
"""
