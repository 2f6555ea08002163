"""`tandem bench gateway`: the gateway and its peers, each in front of mock workers, measured in turn in one run."""
