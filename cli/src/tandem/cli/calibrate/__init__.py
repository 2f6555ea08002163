"""`tandem calibrate`: what the engines and links of a running system cost, for `tandem sim serve`."""
