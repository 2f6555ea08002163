"""`tandem plan`: which workers, how many, and set up how, for a model, a GPU, a load and an SLO.

`datasheet` gives what an engine costs where nobody has measured one, `search` asks the simulator of
`tandem.cli.sim_serve`, and `advice` says how to start what was found.
"""
