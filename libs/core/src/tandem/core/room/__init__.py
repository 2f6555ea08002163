"""The room protocol: one machine per side of a room, without I/O.

`sender` is prefill's side, `receiver` is decode's. Only these machines own a room's state. The
shell (tandem.engine.rank) feeds them inputs and carries out the effects that they return, in order.
"""
