"""`tandem planner`: watches a cluster through its gateway, and recommends or makes changes of its workers."""
