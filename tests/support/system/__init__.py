"""Whole systems for tests: started by `tandem up`, asked over HTTP and gRPC, killed and taken down."""
