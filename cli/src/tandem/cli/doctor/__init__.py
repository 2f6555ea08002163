"""`tandem doctor`: whether this machine can run Tandem, and what to do where it can not."""
